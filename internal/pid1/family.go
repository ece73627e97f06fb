package pid1

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A family tells PID 1's own children, for which exec.Cmd waits, from the orphans
// of the whole machine, which have to be reaped. A wait for just anybody would
// steal from exec.Cmd. Programs are run without the family only before adopt and
// after freeze.
type family struct {
	mu      sync.Mutex
	own     map[int]bool
	adopted bool
	frozen  bool
}

func (f *family) start(cmd *exec.Cmd) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	if f.own == nil {
		f.own = map[int]bool{}
	}
	f.own[cmd.Process.Pid] = true
	return nil
}

func (f *family) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	f.mu.Lock()
	delete(f.own, cmd.Process.Pid)
	f.mu.Unlock()
	f.reap() // an orphan may have got the same number in between
	return err
}

// reap collects the orphans that have ended.
func (f *family) reap() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.adopted || f.frozen {
		return
	}
	for _, pid := range children() {
		if !f.own[pid] {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}

// adopt begins reaping, which wait does too.
func (f *family) adopt() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.adopted = true
}

// freeze ends reaping: from now on children are started without the family.
func (f *family) freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozen = true
}

func children() []int {
	var out []int
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, file := range files {
		b, _ := os.ReadFile(file)
		for _, word := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(word); err == nil {
				out = append(out, pid)
			}
		}
	}
	return out
}
