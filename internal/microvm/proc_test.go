package microvm

import (
	"errors"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds each wait. It is never a pause.
const patience = 2 * time.Minute

func TestProc(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	who, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	other := who
	other.Start++
	if _, err := watchProcess(other); !errors.Is(err, unix.ESRCH) {
		t.Errorf("one that started at another time: %v", err)
	}
	p, err := watchProcess(who)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if p.within(t.Context(), time.Millisecond) {
		t.Error("it has ended")
	}
	if err := p.kill(); err != nil {
		t.Error(err)
	}
	if !p.within(t.Context(), patience) {
		t.Error("its end is not seen")
	}
	_ = cmd.Wait()
	if err := p.kill(); err != nil {
		t.Errorf("killed again: %v", err)
	}
	if _, err := watchProcess(who); !errors.Is(err, unix.ESRCH) {
		t.Errorf("one that is gone: %v", err)
	}
}
