// Package jail starts a program that the machine must be safe from: as a user of
// its own, without any right, in namespaces of its own, in a root that shows
// only the files that it was given, none of which it can change.
//
// The running binary is executed again as a stage that makes the jail around
// itself and then becomes the program:
//
//	Start ──clone, new namespaces──▶ Stage ──mounts, limits, user──▶ program
//	  ◀────────── error, or "it runs" ──┘
//
// The program outlives whoever started it. It is process 1 of its PID namespace,
// so that nothing which it starts outlives it.
package jail

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaces that the program has for itself.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWPID

// firstFile is the number of the first inherited file.
const firstFile = 3

// running is what the stage says right before it becomes the program.
const running = "runs"

// Config of a jailed program. Its environment is empty, its input is /dev/null.
type Config struct {
	Root     []Mount  // all that it sees
	Devices  []string // nodes such as "/dev/null" that it may use
	UID, GID uint32   // never 0; it has no further groups
	Cgroup   string   // folder of a cgroup of version 2; "" is that of the caller
	Files    Files    // its open files, from 3 on
	Lock     *os.File // from Lock: held until the program ends; may be nil
	Args     []string // the first one is its path in the jail
	Stdout   *os.File // nil is /dev/null
	Stderr   *os.File // nil is /dev/null
}

// Mount shows a file or a folder of the machine read-only in the jail. What is
// mounted below the folder is not shown.
type Mount struct {
	Host string // absolute; links are followed
	Path string // absolute, inside
}

// Files are open files that the program inherits. They stay the caller's.
type Files []*os.File

// Add gives a file to the program and returns its number there.
func (f *Files) Add(file *os.File) int {
	*f = append(*f, file)
	return firstFile + len(*f) - 1
}

// order is what the stage is told.
type order struct {
	Root     []Mount
	Devices  []string
	UID, GID uint32
	Args     []string
	Files    int
}

// Start returns once the program runs. On an error nothing is left of it. ctx
// bounds the start only. The caller closes its own copies of all files,
// Lock too: else the lock is held by the caller as well.
func Start(ctx context.Context, c Config) (*Process, error) {
	p, err := start(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("jail %q: %w", c.name(), err)
	}
	return p, nil
}

func (c Config) name() string {
	if len(c.Args) == 0 {
		return ""
	}
	return c.Args[0]
}

func start(ctx context.Context, c Config) (*Process, error) {
	if len(c.Args) == 0 || c.UID == 0 || c.GID == 0 {
		return nil, errors.New("it needs a program, and a user and a group that are not root's")
	}
	here, there, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer here.Close()
	cmd, err := c.stage(there)
	if err != nil {
		return nil, errors.Join(err, there.Close())
	}
	err = cmd.Start()
	if f := cmd.SysProcAttr.CgroupFD; cmd.SysProcAttr.UseCgroupFD {
		err = errors.Join(err, unix.Close(f))
	}
	if err = errors.Join(err, there.Close()); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	err = c.instruct(cmd.Process.Pid, here)
	if !stop() { // it is killed, or will be
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, err
	}
	return started(cmd), nil
}

// stage is the command that runs this binary again, in the namespaces and the
// cgroup already.
func (c Config) stage(control *os.File) (*exec.Cmd, error) {
	files := c.inherited()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{stageName, strconv.Itoa(firstFile + len(files))}, Env: []string{}, Dir: "/",
		ExtraFiles: append(files, control),
		// Without a signal at the parent's death: it outlives it.
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: namespaces, Setsid: true},
	}
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	if c.Stderr != nil {
		cmd.Stderr = c.Stderr
	}
	if c.Cgroup == "" {
		return cmd, nil
	}
	fd, err := unix.Open(c.Cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open cgroup %s: %w", c.Cgroup, err)
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd
	return cmd, nil
}

func (c Config) inherited() []*os.File {
	files := append([]*os.File(nil), c.Files...)
	if c.Lock != nil {
		files = append(files, c.Lock)
	}
	return files
}

// instruct notes the process, tells the stage what to do and waits until it
// has become the program.
func (c Config) instruct(pid int, control *os.File) error {
	if c.Lock != nil {
		if err := note(c.Lock, pid); err != nil {
			return err
		}
	}
	text, err := json.Marshal(order{Root: c.Root, Devices: c.Devices, UID: c.UID, GID: c.GID, Args: c.Args, Files: len(c.inherited())})
	if err != nil {
		return err
	}
	if _, err := control.Write(text); err != nil {
		return err
	}
	if err := shutdownWrite(control); err != nil {
		return err
	}
	answer, err := io.ReadAll(control)
	if err != nil {
		return err
	}
	complaint, ran := bytes.CutPrefix(answer, []byte(running))
	switch {
	case len(complaint) > 0:
		return errors.New(string(complaint))
	case !ran:
		return errors.New("it was killed before it ran")
	}
	return nil
}

// socketpair ends are not inherited unless asked for.
func socketpair() (here, there *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control"), nil
}

func shutdownWrite(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var shut error
	err = raw.Control(func(fd uintptr) { shut = unix.Shutdown(int(fd), unix.SHUT_WR) })
	return errors.Join(err, shut)
}
