package process

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

func TestEnding(t *testing.T) {
	own, err := Started(os.Getpid())
	if err != nil || own == 0 || Ending(os.Getpid()) {
		t.Errorf("own: %d, %v", own, err)
	}
	cmd := exec.Command("sleep", "1h")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if at, err := Started(pid); err != nil || at < own || Ending(pid) {
		t.Errorf("runs: %d, %v, ends %t", at, err, Ending(pid))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// From the signal on, and until it's waited for.
	if !Ending(pid) {
		t.Error("killed, and does not end")
	}
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if !Ending(pid) {
		t.Error("has ended, and does not end")
	}
	_ = cmd.Wait()
	if at, err := Started(pid); !gone(err) || !Ending(pid) {
		t.Errorf("gone: %d, %v, ends %t", at, err, Ending(pid))
	}
}

func TestParseStat(t *testing.T) {
	const rest = " 2 3 4 0 -1 4194308 0 0 0 0 0 0 0 0 20 0 1 0 987 0"
	for text, want := range map[string]stat{
		"7 (sh) S" + rest: {'S', 2, 4, 987, true},
		"7 (a) S 1 (b c) Z 2 3 -1 0 -1 4194308 0 0 0 0 0 0 0 0 20 0 1 0 987 0": {'Z', 2, -1, 987, true},
		"7 (a) S 1 (b c) Z" + rest: {'Z', 2, 4, 987, true},
	} {
		if got, err := parseStat([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "7", "7 (sh", "7 (sh)", "7 (sh) S 1 1",
		"7 (sh) S 1 1 1 0 -1 x 0 0 0 0 0 0 0 0 20 0 1 0 987", "7 (sh) S 1 1 1 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 x",
		"7 (sh) S x 1 1 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 987", "7 (sh) S 1 1 x 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 987",
	} {
		if got, err := parseStat([]byte(text)); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestKillPending(t *testing.T) {
	for text, want := range map[string]bool{
		"": false,
		"Name:\tSigPnd:\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n":     false,
		"SigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n":                     true,
		"SigPnd:\t0000000000000000\nShdPnd:\t0000000000004100\n":                     true,
		"SigPnd:\t0000000000004000\nSigBlk:\t0000000000000100\nShdPnd:\tzzz\nSigPnd": false,
	} {
		if got := killPending([]byte(text)); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
}
