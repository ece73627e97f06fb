package process

import (
	"bufio"
	"context"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A family goes with all that it started, whatever session that is in; others stay.
func TestKillFamily(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begin := func(script string) (*exec.Cmd, []int) {
		cmd := exec.CommandContext(ctx, "sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Skip("no shell here: ", err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		var pids []int
		for _, word := range strings.Fields(line) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
		return cmd, pids
	}
	other, _ := begin("echo $$; sleep 1000; true")
	defer func() { _ = other.Process.Kill(); _ = KillFamily(ctx, "/proc", other.Process.Pid); _ = other.Wait() }()
	// One in the session, one whose parent is gone, one that leads another session.
	cmd, pids := begin("sleep 1000 & a=$!; b=$(sleep 1000 >/dev/null & echo $!); setsid sleep 1000 >/dev/null & echo $$ $a $b $!; wait")
	defer func() { _ = cmd.Wait() }()
	if err := KillFamily(ctx, "/proc", cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	all, err := stats("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if s, there := all[pid]; there && s.state != 'Z' && s.state != 'X' {
			t.Errorf("process %d is left: %+v", pid, s)
		}
	}
	if err := unix.Kill(other.Process.Pid, 0); err != nil {
		t.Errorf("another family: %v", err)
	}
	if err := KillFamily(ctx, "/proc", 1); err == nil {
		t.Error("process 1 is taken for a family")
	}
	if err := KillFamily(ctx, "/proc", cmd.Process.Pid); err != nil {
		t.Errorf("again: %v", err)
	}
}
