package container

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"capsule/internal/process"
	"capsule/internal/workload"
)

const (
	// quietLimit ends the wait for output after the command's end when nothing
	// comes any more: a child that it left behind may hold the pipe for ever.
	quietLimit = 2 * time.Second
	// quietLook is between two looks for that: a machine that stood still for a
	// while was not quiet.
	quietLook = quietLimit / 10
	// cleanLimit bounds the tidying after a command, also when its caller left.
	cleanLimit = 30 * time.Second
)

// Exec runs a command in a running instance. A command that can't be run gives
// its code (126, 127) and the reason on stderr, as a shell would.
func (d *Driver) Exec(ctx context.Context, id workload.ID, e workload.Exec) (int, error) {
	c, task, err := d.running(ctx, id)
	if err != nil {
		return 0, err
	}
	if len(e.Command) == 0 {
		return 0, fmt.Errorf("exec in workload %q: no command: %w", id.Name, errdefs.ErrInvalidArgument)
	}
	spec, err := d.execSpec(ctx, id, c, e)
	if p := (*process.Problem)(nil); errors.As(err, &p) {
		e.Complain(p.Text)
		return p.Code, nil
	}
	if err != nil {
		return 0, fmt.Errorf("exec in workload %q: %w", id.Name, err)
	}
	code, err := d.exec(ctx, task, spec, e)
	if err != nil {
		return 0, fmt.Errorf("exec in workload %q: %w", id.Name, err)
	}
	// The kernel kills the commands of a PID namespace when its first process has
	// begun to exit, and before that is seen to be gone.
	if code == process.Killed && process.Ending(int(task.Pid())) {
		e.Complain(fmt.Sprintf("workload %q ended", id.Name))
	}
	return code, nil
}

// execSpec derives the command's process from the instance's.
func (d *Driver) execSpec(ctx context.Context, id workload.ID, c containerd.Container, e workload.Exec) (*specs.Process, error) {
	spec, err := c.Spec(ctx)
	if err != nil {
		return nil, err
	}
	root, err := d.root(ctx, id)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	p := spec.Process
	who := process.Account{UID: p.User.UID, GID: p.User.GID, Groups: p.User.AdditionalGids}
	if e.User != "" {
		if who, err = root.Account(e.User); err != nil {
			return nil, err
		}
		p.User, p.Capabilities = specUser(who), capabilitiesOf(who)
		p.Env = process.Override(p.Env, "HOME="+who.Home)
	}
	secrets, err := d.secretEnv(c.ID())
	if err != nil {
		return nil, err
	}
	p.Env = process.Override(p.Env, secrets...)
	if e.Cwd != "" {
		p.Cwd = e.Cwd
	}
	p.Args = e.Command
	if p.Terminal = e.TTY; e.TTY {
		p.Env = process.Override(p.Env, "TERM=xterm")
		if e.Size != (workload.TerminalSize{}) {
			p.ConsoleSize = &specs.Box{Height: uint(e.Size.Rows), Width: uint(e.Size.Columns)}
		}
	}
	p.Env = process.Override(p.Env, e.Env...)
	search, _ := process.Lookup(p.Env, "PATH")
	return p, root.Program(e.Command[0], search, p.Cwd, who)
}

// exec runs the process and cleans up after it.
func (d *Driver) exec(ctx context.Context, task containerd.Task, spec *specs.Process, e workload.Exec) (int, error) {
	// The command is tidied away also when the caller is gone.
	clean, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stdio := newStdio(e)
	proc, err := task.Exec(clean, "exec-"+rand.Text(), spec, cio.NewCreator(stdio.option(), withTerminal(e.TTY), cio.WithFIFODir(d.opts.FIFODir)))
	if err != nil {
		return 0, err
	}
	defer func() {
		tidy, cancel := context.WithTimeout(clean, cleanLimit)
		defer cancel()
		_, _ = proc.Delete(tidy, containerd.WithProcessKill)
	}()
	if err := proc.Start(clean); err != nil {
		if strings.Contains(err.Error(), "cannot exec in a stopped") {
			return process.Killed, nil
		}
		return 0, err
	}
	type result struct {
		code int
		err  error
	}
	ended := make(chan result, 1)
	go func() {
		code, err := d.exit(clean, task.ID(), proc.ID())
		ended <- result{code, err}
	}()
	stdinDone := stdio.stdinDone()
	for {
		select {
		case <-stdinDone:
			// Only now: before its start the command would not see it.
			stdinDone = nil
			if err := proc.CloseIO(clean, containerd.WithStdinCloser); err != nil && !gone(err) {
				return 0, err
			}
		case size, ok := <-e.Resize:
			if !ok {
				e.Resize = nil
				continue
			}
			_ = proc.Resize(clean, size.Columns, size.Rows)
		case signal, ok := <-e.Signals:
			if !ok {
				e.Signals = nil
				continue
			}
			if err := proc.Kill(clean, syscall.Signal(signal)); err != nil && !gone(err) {
				return 0, err
			}
		case r := <-ended:
			if r.err == nil {
				stdio.drain(ctx, proc.IO())
			}
			return r.code, r.err
		case <-ctx.Done():
			// Whom it was for has left: so goes all that it started.
			killing, cancel := context.WithTimeout(clean, cleanLimit)
			defer cancel()
			if err := process.KillFamily(killing, "/proc", int(proc.Pid())); err != nil {
				slog.Warn("kill a command that nobody waits for", "instance", task.ID(), "error", err)
			}
			return 0, ctx.Err()
		}
	}
}

func withTerminal(tty bool) cio.Opt {
	return func(s *cio.Streams) { s.Terminal = tty }
}

// stdio are the streams of a command, watched for progress.
type stdio struct {
	in       *input
	out, err io.Writer
	mu       sync.Mutex
	writing  int           // writes that the reader has not taken yet
	moved    chan struct{} // a write ended
}

func newStdio(e workload.Exec) *stdio {
	s := &stdio{moved: make(chan struct{}, 1)}
	if e.Stdin != nil {
		s.in = &input{r: e.Stdin, done: make(chan struct{})}
	}
	s.out, s.err = s.watched(e.Stdout), s.watched(e.Stderr)
	return s
}

func (s *stdio) option() cio.Opt {
	if s.in == nil {
		return cio.WithStreams(nil, s.out, s.err)
	}
	return cio.WithStreams(s.in, s.out, s.err)
}

// stdinDone is closed when all input was passed on.
func (s *stdio) stdinDone() <-chan struct{} {
	if s.in == nil {
		return nil
	}
	return s.in.done
}

// drain waits until all output was taken, or none comes any more.
func (s *stdio) drain(ctx context.Context, streams cio.IO) {
	done := make(chan struct{})
	go func() { streams.Wait(); close(done) }()
	look := time.NewTicker(quietLook)
	defer look.Stop()
	for quiet := time.Duration(0); ; {
		select {
		case <-done:
			return
		case <-ctx.Done():
			return
		case <-s.moved:
			quiet = 0
		case <-look.C:
			quiet += quietLook
			s.mu.Lock()
			busy := s.writing > 0
			s.mu.Unlock()
			if quiet >= quietLimit && !busy {
				return
			}
		}
	}
}

// input tells when its reader has ended.
type input struct {
	r    io.Reader
	once sync.Once
	done chan struct{}
}

func (i *input) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	if n > 0 {
		return n, nil // an end is asked for again, after these were passed on
	}
	if err != nil {
		i.once.Do(func() { close(i.done) })
	}
	return 0, err
}

// output notes that its writes go on.
type output struct {
	w io.Writer
	s *stdio
}

func (s *stdio) watched(w io.Writer) io.Writer {
	if w == nil {
		w = io.Discard
	}
	return output{w, s}
}

func (o output) Write(p []byte) (int, error) {
	o.s.mu.Lock()
	o.s.writing++
	o.s.mu.Unlock()
	n, err := o.w.Write(p)
	o.s.mu.Lock()
	o.s.writing--
	o.s.mu.Unlock()
	select {
	case o.s.moved <- struct{}{}:
	default:
	}
	return n, err
}
