package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"capsule/internal/cgroup"
	"capsule/internal/process"
)

// reportMax bounds what a stage says of its problem.
const reportMax = 64 << 10

// pipe has one end for the agent and a blocking one for a child.
func pipe(childWrites bool) (ours, theirs *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	our, their := fds[1], fds[0]
	if childWrites {
		our, their = their, our
	}
	if err := unix.SetNonblock(our, true); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(our), "pipe"), os.NewFile(uintptr(their), "pipe"), nil
}

// A child is a started stage, which has become its program.
type child struct {
	*os.Process
	pidfd *os.File
}

// startStage starts a stage and waits until it has become the program.
func (c *children) startStage(l launch, standard [3]*os.File, attr *syscall.SysProcAttr, join *os.File) (*child, error) {
	launchWrite, launchRead, err := pipe(false)
	if err != nil {
		return nil, err
	}
	defer launchWrite.Close()
	defer launchRead.Close()
	reportRead, reportWrite, err := pipe(true)
	if err != nil {
		return nil, err
	}
	defer reportRead.Close()
	defer reportWrite.Close()
	files := append(standard[:], launchRead, reportWrite)
	if join != nil {
		files = append(files, join)
	}
	pidfd := -1
	attr.PidFD = &pidfd
	p, err := c.start("/proc/self/exe", []string{stageName}, &os.ProcAttr{Dir: "/", Env: []string{}, Files: files, Sys: attr})
	if err != nil {
		return nil, fmt.Errorf("start a process: %w", err)
	}
	launchRead.Close()
	reportWrite.Close()
	err = errors.Join(json.NewEncoder(launchWrite).Encode(l), launchWrite.Close())
	if problem := readReport(reportRead); problem != nil {
		err = problem
	}
	if err != nil {
		_ = p.Kill()
		_, _ = c.wait(p)
		_ = unix.Close(pidfd)
		return nil, err
	}
	return &child{p, os.NewFile(uintptr(pidfd), "pidfd")}, nil
}

// readReport gives the problem of a stage that did not become the program.
func readReport(r io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(r, reportMax))
	if err != nil || len(text) == 0 {
		return err
	}
	problem := &process.Problem{}
	if err := json.Unmarshal(text, problem); err != nil {
		return err
	}
	if problem.Code == 0 {
		return errors.New(problem.Text) // ours, not the program's
	}
	return problem
}

// startPayload starts the first process of new namespaces, in the cgroup.
func (c *children) startPayload(l launch, standard [3]*os.File, g cgroup.Group) (*child, error) {
	folder, err := os.Open(string(g))
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	return c.startStage(l, standard, &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		UseCgroupFD: true, CgroupFD: int(folder.Fd()),
		Setsid: true,
	}, nil)
}

// startCommand starts a process in the namespaces and the cgroup of the payload.
// Children are born in the process namespace that their parent's thread has
// chosen for them, so a thread of the agent chooses, and ends after it.
func (c *children) startCommand(l launch, standard [3]*os.File, g cgroup.Group, payload *os.File, terminal bool) (*child, error) {
	folder, err := os.Open(string(g))
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	type result struct {
		child *child
		err   error
	}
	started := make(chan result, 1)
	go guarded("start a command", func() {
		r := result{err: errors.New("the agent panicked")}
		defer func() { started <- r }()
		runtime.LockOSThread() // never unlocked: the thread ends here
		if r.err = unix.Setns(int(payload.Fd()), unix.CLONE_NEWPID); r.err != nil {
			return
		}
		r.child, r.err = c.startStage(l, standard, &syscall.SysProcAttr{
			UseCgroupFD: true, CgroupFD: int(folder.Fd()),
			Setsid: true, Setctty: terminal, // standard input is the terminal
		}, payload)
	})
	r := <-started
	return r.child, r.err
}
