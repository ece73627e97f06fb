package jail

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// pidBytes is enough for any process number.
const pidBytes = 20

// Process is a jailed program that runs, or did.
type Process struct {
	PID  int // on the machine; in its jail it is 1
	os   *os.Process
	done chan struct{}
	err  error // written before done is closed
}

// started is a program that this process has to reap.
func started(cmd *exec.Cmd) *Process {
	p := &Process{PID: cmd.Process.Pid, os: cmd.Process, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p
}

// Done is closed once the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the program ended, in the words of os/exec; to be asked after Done.
// It is nil for one that was found: only a parent is told.
func (p *Process) Err() error { return p.err }

// Kill ends the program; Done tells when that has happened.
func (p *Process) Kill() error {
	if err := p.os.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return nil
}

// Lock takes the lock at path, for Config, so that no two programs run for one
// purpose. It fails with FailedPrecondition when a program holds it.
func Lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	held, err := take(f)
	if err == nil && !held {
		err = f.Truncate(0) // the last holder's number
	}
	if held {
		err = fmt.Errorf("%s is locked by a running program: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// take locks a file, or tells that somebody else has.
func take(f *os.File) (held bool, err error) {
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return false, nil
}

// note writes the number of the process that holds the lock into it.
func note(lock *os.File, pid int) error {
	_, err := lock.WriteAt([]byte(strconv.Itoa(pid)), 0)
	return err
}

// Find returns the program that holds the lock at path, whoever started it, or
// nil when none does. It is not for use while Start works with the same lock.
func Find(path string) (*Process, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if held, err := take(f); !held {
		return nil, err
	}
	text := make([]byte, pidBytes)
	n, _ := f.ReadAt(text, 0) //nolint:errcheck // an empty file is no number
	if n == 0 {
		return nil, outwait(f)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text[:n])))
	if err != nil {
		return nil, fmt.Errorf("%s names no process: %w", path, err)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return nil, err
	}
	// Now that the process is held: if it ended before, its number may be
	// another's.
	if held, err := take(f); !held {
		return nil, errors.Join(err, p.Release())
	}
	return found(p)
}

// outwait waits for the holder of a lock that names nobody: who started it died
// before it could note the number, so that the stage gets no order and ends.
func outwait(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// found is a program that somebody else reaps.
func found(p *os.Process) (*Process, error) {
	handle := -1
	var dup error
	err := p.WithHandle(func(h uintptr) { handle, dup = unix.FcntlInt(h, unix.F_DUPFD_CLOEXEC, 0) })
	if errors.Is(err, os.ErrProcessDone) {
		return nil, nil
	}
	if err = errors.Join(err, dup); err != nil {
		return nil, fmt.Errorf("hold process %d: %w", p.Pid, err)
	}
	if err := unix.SetNonblock(handle, true); err != nil {
		return nil, errors.Join(err, unix.Close(handle))
	}
	f := os.NewFile(uintptr(handle), "pidfd")
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	q := &Process{PID: p.Pid, os: p, done: make(chan struct{})}
	go func() {
		defer close(q.done)
		defer f.Close()
		_ = conn.Read(func(fd uintptr) bool { return ended(int(fd)) }) // its handle lasts as long as this runs
	}()
	return q, nil
}

// ended says whether a process has, by its handle.
func ended(handle int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}, 0) //nolint:gosec // a small number
	return err == nil && n > 0
}
