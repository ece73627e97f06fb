package guest

import (
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// children are the processes that the agent started itself. All others that it
// gets are orphans: as process 1 it has to reap them, and must not steal from who
// waits for its own.
type children struct {
	mu     sync.Mutex
	own    map[int]bool
	adopts bool // orphans are reaped
}

// start is os.StartProcess.
func (c *children) start(name string, argv []string, attr *os.ProcAttr) (*os.Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := os.StartProcess(name, argv, attr)
	if err != nil {
		return nil, err
	}
	if c.own == nil {
		c.own = map[int]bool{}
	}
	c.own[p.Pid] = true
	return p, nil
}

// wait gives a child's exit code, 128 + signal when killed by one.
func (c *children) wait(p *os.Process) (code int, err error) {
	state, err := p.Wait()
	c.mu.Lock()
	delete(c.own, p.Pid)
	adopts := c.adopts
	c.mu.Unlock()
	if adopts {
		c.reap() // the child may have hidden orphans
	}
	if err != nil {
		return 0, err
	}
	status := state.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// reapOrphans reaps whenever a child has ended.
func (c *children) reapOrphans(ended <-chan os.Signal) {
	c.mu.Lock()
	c.adopts = true
	c.mu.Unlock()
	for range ended {
		c.reap()
	}
}

// reap collects orphans until there is none, or one of our own is the first in
// the kernel's list: who waits for that goes on here.
func (c *children) reap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
			return
		}
		pid := pidOf(&info)
		if pid == 0 || c.own[pid] {
			return
		}
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}

// pidOf reads si_pid, which follows the preamble of four ints.
func pidOf(info *unix.Siginfo) int {
	return int((*[5]int32)(unsafe.Pointer(info))[4])
}
