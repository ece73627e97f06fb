// Package debug runs commands with the tools that the slot holds, for an operator who
// looks into the machine: as root, in the machine's own network, processes, IPC and
// names, and with its devices. Containerd has no part in it, since that may be what is
// broken.
//
// Only the mounts are a session's own. Its root is the folder of tools, with a file
// system in memory above that takes what is written; the machine's devices and kernel
// file systems are where they always are. What else the machine has mounted is not
// copied, for a copy would keep a volume busy: /host leads to it, as process 1 sees it.
//
// The running binary is executed again as a stage that builds that root around itself
// and then becomes the command (Stage). All processes of a session are in a control
// group of its own, which is killed at its end: nothing is left, whoever hung up.
package debug

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/cgroup"
	"capsule/internal/process"
	"capsule/internal/workload"
)

const (
	// ToolsDir is where the image holds the tools.
	ToolsDir = "/usr/lib/capsule/debug"
	// SessionsMax at once.
	SessionsMax = 4

	pidsMax   = 1024      // processes of all sessions together
	memoryMin = 128 << 20 // bytes that all of them may have on any machine
	// memoryPart of the machine's memory may be theirs where that is more.
	memoryPart = 4
	// endMax bounds the wait for the end of what was killed.
	endMax = 5 * time.Second
)

// Options of sessions.
type Options struct {
	Tools string       // default ToolsDir
	Group cgroup.Group // that of all sessions, made by process 1
	// MemoryTotal of the machine in bytes; 0 sets no bound.
	MemoryTotal uint64
	Env         []string // NAME=value, for the tools
}

// Sessions of operators.
type Sessions struct {
	tools string
	group cgroup.Group
	env   []string

	mu      sync.Mutex
	running int
	last    int // number of the newest
}

// New bounds what sessions take together, and ends what a former daemon left of them.
func New(o Options) *Sessions {
	s := &Sessions{tools: o.Tools, group: o.Group, env: process.Override(environment, o.Env...)}
	if s.tools == "" {
		s.tools = ToolsDir
	}
	if err := s.prepare(o.MemoryTotal); err != nil {
		slog.Error("prepare for debug sessions", "error", err)
	}
	return s
}

func (s *Sessions) prepare(memory uint64) error {
	errs := []error{s.group.End(endMax)}
	left, err := filepath.Glob(filepath.Join(string(s.group), "session-*"))
	errs = append(errs, err)
	for _, dir := range left {
		errs = append(errs, remove(dir))
	}
	if memory > 0 {
		most := max(memoryMin, memory/memoryPart)
		errs = append(errs, s.group.Set("memory.max", strconv.FormatUint(most, 10)), s.group.Set("pids.max", strconv.Itoa(pidsMax)))
	}
	return errors.Join(errs...)
}

// shell is what runs when no command is named.
var shell = []string{"sh"}

// Run runs a command until it ends, or ctx does; then nothing is left of it, nor of
// what it started. Without a command it is a shell. A command that can't be run gives
// its code (126, 127) and the reason on stderr, as a shell would. The error is of
// class Unavailable when too many run, FailedPrecondition without tools.
func (s *Sessions) Run(ctx context.Context, e workload.Exec) (code int, err error) {
	if _, err := os.Stat(s.tools); err != nil {
		return 0, fmt.Errorf("debug: this system has no tools at %s: %w", s.tools, errdefs.ErrFailedPrecondition)
	}
	group, err := s.enter()
	if err != nil {
		return 0, err
	}
	defer s.leave(group)
	r := &run{Exec: e, group: group}
	if len(r.Command) == 0 {
		r.Command = shell
	}
	if err := r.start(s.tools, s.env); err != nil {
		return 0, fmt.Errorf("debug %q: %w", r.Command[0], err)
	}
	return r.follow(ctx)
}

// enter makes a session's group.
func (s *Sessions) enter() (cgroup.Group, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == SessionsMax {
		return "", fmt.Errorf("%d debug sessions are open, which is all that may be: end one of them: %w", SessionsMax, errdefs.ErrUnavailable)
	}
	group := cgroup.Group(filepath.Join(string(s.group), fmt.Sprintf("session-%d", s.last+1)))
	if err := os.Mkdir(string(group), 0o755); err != nil {
		return "", fmt.Errorf("debug: make a control group: %w", err)
	}
	s.running++
	s.last++
	return group, nil
}

func (s *Sessions) leave(group cgroup.Group) {
	err := group.End(endMax)
	if err == nil {
		err = remove(string(group))
	}
	if err != nil {
		slog.Error("end a debug session", "error", err)
	}
	s.mu.Lock()
	s.running--
	s.mu.Unlock()
}

// remove removes a session's group, which the session or the next daemon may have done.
func remove(dir string) error {
	if err := os.Remove(dir); !os.IsNotExist(err) {
		return err
	}
	return nil
}

// environment of a command; that of the tools and the caller's own come on top.
var environment = []string{"PATH=" + process.DefaultPath, "HOME=/root", "TERM=xterm", `PS1=\h:\w# `, "LANG=C.UTF-8"}

// run is one command.
type run struct {
	workload.Exec
	group cgroup.Group

	cmd     *exec.Cmd
	streams *streams
}

// start starts the stage, which becomes the command.
func (r *run) start(tools string, env []string) error {
	group, err := os.Open(string(r.group))
	if err != nil {
		return err
	}
	defer group.Close()
	var theirs [3]*os.File
	if r.streams, theirs, err = open(r.Exec); err != nil {
		return err
	}
	r.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: append([]string{stageName, tools}, r.Command...), Dir: "/",
		Env:   process.Override(env, r.Env...),
		Stdin: theirs[0], Stdout: theirs[1], Stderr: theirs[2],
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS, Setsid: true, Setctty: r.TTY,
			UseCgroupFD: true, CgroupFD: int(group.Fd()), //nolint:gosec // a small number
		},
	}
	err = r.cmd.Start()
	for _, f := range theirs {
		f.Close()
	}
	if err != nil {
		r.streams.close()
		return err
	}
	r.streams.move(r.Exec)
	return nil
}

// follow serves the command until it has ended, with all that it started.
func (r *run) follow(ctx context.Context) (int, error) {
	defer r.streams.close()
	ended := make(chan int, 1)
	go func() {
		_ = r.cmd.Wait() // how it ended is in the state
		ended <- exitCode(r.cmd.ProcessState)
	}()
	for {
		select {
		case size := <-r.Resize:
			r.streams.resize(size)
		case signal := <-r.Signals:
			if err := r.cmd.Process.Signal(syscall.Signal(signal)); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return 0, fmt.Errorf("signal the command: %w", err)
			}
		case code := <-ended:
			// What it left running would hold its output for ever, and is not to stay.
			if err := r.group.End(endMax); err != nil {
				return 0, err
			}
			r.streams.drain(ctx)
			return code, nil
		case <-ctx.Done():
			return 0, errors.Join(ctx.Err(), r.group.End(endMax))
		}
	}
}

func exitCode(state *os.ProcessState) int {
	status, ok := state.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}
