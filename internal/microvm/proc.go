package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/await"
	"capsule/internal/process"
)

// identity tells a process from a later one of the same number.
type identity struct {
	PID   int
	Start uint64 // clock ticks from the kernel's start to the process's
}

// proc is a process that may have been started by a daemon before this one.
type proc struct {
	identity
	fd     *os.File // pidfd
	exited chan struct{}
}

// identify reads who has a number now.
func identify(pid int) (identity, error) {
	start, err := process.Started(pid)
	return identity{pid, start}, err
}

// watchProcess takes hold of a process; ESRCH when it is gone.
func watchProcess(who identity) (*proc, error) {
	fd, err := unix.PidfdOpen(who.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", who.PID, err)
	}
	p := &proc{identity: who, fd: os.NewFile(uintptr(fd), "pidfd"), exited: make(chan struct{})}
	if now, err := identify(who.PID); err != nil || now != who {
		p.close()
		return nil, fmt.Errorf("process %d: %w", who.PID, unix.ESRCH)
	}
	go p.follow()
	return p, nil
}

// follow closes exited when the process has ended.
func (p *proc) follow() {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return
	}
	err = raw.Read(func(fd uintptr) bool {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
	if err == nil {
		close(p.exited)
	}
}

// kill ends it by force; that it has ended is success.
func (p *proc) kill() error {
	var sent error
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	if errors.Is(sent, unix.ESRCH) {
		sent = nil
	}
	return errors.Join(err, sent)
}

// within waits for the end for a time.
func (p *proc) within(ctx context.Context, limit time.Duration) bool {
	return within(ctx, p.exited, limit)
}

// close lets go of it. It may run on.
func (p *proc) close() { _ = p.fd.Close() }

// within tells whether done is closed before the limit and the end of ctx.
func within(ctx context.Context, done <-chan struct{}, limit time.Duration) bool {
	ended, _ := await.Done(ctx, done, limit)
	return ended
}
