package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	guestv1 "capsule/api/capsule/guest/v1"
	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/await"
	"capsule/internal/process"
	"capsule/internal/terminal"
)

const (
	// endMax bounds the wait for the payload's end after a command was killed.
	endMax    = 2 * time.Second
	signalMax = 64
	// endedMessage tells that a command was killed because the payload ended.
	endedMessage = "the payload has ended"
)

type execStream = grpc.BidiStreamingServer[capsulev1.ExecRequest, capsulev1.ExecResponse]

// Exec runs a command beside the payload. One that can't be run gives its code
// (126, 127) and the reason on stderr, as a shell would; one whose caller leaves
// is killed, with all that it started.
func (a *agent) Exec(stream guestv1.GuestService_ExecServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if len(start.GetCommand()) == 0 {
		return fmt.Errorf("exec must begin with a command: %w", errdefs.ErrInvalidArgument)
	}
	p, err := a.started()
	if err != nil {
		return err
	}
	x := &execution{payload: p, start: start, stream: stream}
	exit, err := x.run()
	if err != nil {
		return err
	}
	return x.send(&capsulev1.ExecResponse{Output: &capsulev1.ExecResponse_Exit{Exit: exit}})
}

// An execution is one command of a caller.
type execution struct {
	payload *payload
	start   *capsulev1.ExecStart

	mu     sync.Mutex // of Send
	stream execStream

	child   *child
	out     *outlet
	console *terminal.Terminal // the agent's side of the terminal, nil without one
	stdin   *os.File           // nil when it reads end of file at once
}

func (x *execution) send(r *capsulev1.ExecResponse) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.stream.Send(r)
}

// streamWriter sends what a command prints.
type streamWriter struct {
	x      *execution
	stderr bool
}

func (w streamWriter) Write(p []byte) (int, error) {
	r := &capsulev1.ExecResponse{Output: &capsulev1.ExecResponse_Stdout{Stdout: p}}
	if w.stderr {
		r.Output = &capsulev1.ExecResponse_Stderr{Stderr: p}
	}
	// The message is encoded before Send returns: p may be reused then.
	if err := w.x.send(r); err != nil {
		return 0, err
	}
	return len(p), nil
}

// run starts the command and waits for it.
func (x *execution) run() (*capsulev1.ExecExit, error) {
	_, leave, err := x.payload.visit(x.stream.Context())
	if err != nil {
		return nil, err
	}
	l, err := x.launch()
	if err == nil {
		err = x.begin(l)
	}
	leave() // the command itself ends with the payload's processes
	if problem := (*process.Problem)(nil); errors.As(err, &problem) {
		return &capsulev1.ExecExit{Code: int32(problem.Code)}, x.complain(problem.Text)
	}
	if err != nil {
		if x.payloadEnds(x.stream.Context()) {
			return &capsulev1.ExecExit{Code: process.Killed, Message: endedMessage}, nil
		}
		return nil, err
	}
	return x.follow(x.stream.Context())
}

// launch derives the command's from the payload's.
func (x *execution) launch() (launch, error) {
	root, err := x.payload.root()
	if err != nil {
		return launch{}, err
	}
	defer root.Close()
	l := x.payload.launch
	l.Root, l.Shown, l.Args = "", nil, x.start.GetCommand()
	if user := x.start.GetUser(); user != "" {
		if l.Account, err = root.Account(user); err != nil {
			return launch{}, err
		}
		l.Env = process.Override(l.Env, "HOME="+l.Account.Home)
	}
	if cwd := x.start.GetWorkingDir(); cwd != "" {
		l.Cwd = cwd
	}
	if x.start.GetTty() {
		l.Env = process.Override(l.Env, "TERM=xterm")
	}
	l.Env = process.Override(l.Env, x.start.GetEnv()...)
	search, _ := process.Lookup(l.Env, "PATH")
	return l, root.Program(l.Args[0], search, l.Cwd, l.Account)
}

// complain writes a line of our own to the command's stderr.
func (x *execution) complain(text string) error {
	end := "\n"
	if x.start.GetTty() {
		end = "\r\n"
	}
	_, err := streamWriter{x, !x.start.GetTty()}.Write([]byte("capsule: " + text + end))
	return err
}

// payloadEnds tells whether the payload ends just now.
func (x *execution) payloadEnds(ctx context.Context) bool {
	done, _ := await.Done(ctx, x.payload.gone, endMax)
	return done
}

// begin starts the command with its streams.
func (x *execution) begin(l launch) error {
	x.out = newOutlet()
	standard, err := x.standard()
	if err == nil {
		x.child, err = x.payload.children.startCommand(l, standard, x.payload.group, x.payload.first.pidfd, x.start.GetTty())
	}
	for _, f := range standard {
		if f != nil {
			f.Close()
		}
	}
	if err != nil {
		x.out.close()
		x.dropStdin()
	}
	return err
}

// standard gives the command's side of its standard streams.
func (x *execution) standard() (theirs [3]*os.File, err error) {
	if x.start.GetTty() {
		return x.terminal()
	}
	if x.start.GetStdin() {
		x.stdin, theirs[0], err = pipe(false)
	} else {
		theirs[0], err = os.Open(os.DevNull)
	}
	for i := 1; i < 3 && err == nil; i++ {
		var ours *os.File
		if ours, theirs[i], err = pipe(true); err == nil {
			x.out.add(streamWriter{x, i == 2}, ours)
		}
	}
	return theirs, err
}

// follow serves the command until it has ended.
func (x *execution) follow(ctx context.Context) (*capsulev1.ExecExit, error) {
	defer x.child.pidfd.Close()
	defer x.out.close()
	type result struct {
		code int
		err  error
	}
	ended := make(chan result, 1)
	go guarded("exec", func() {
		code, err := x.payload.children.wait(x.child.Process)
		ended <- result{code, err}
	})
	callerLeft := make(chan error, 1)
	go guarded("exec input", func() { callerLeft <- x.input() })
	defer x.dropStdin()
	for {
		select {
		case r := <-ended:
			if r.err != nil {
				return nil, r.err
			}
			return x.exit(ctx, r.code), nil
		case err := <-callerLeft:
			if err == nil { // it only has no more to say
				callerLeft = nil
				continue
			}
			x.kill(ctx)
			<-ended
			return nil, err
		}
	}
}

// kill ends the command with all that it started.
func (x *execution) kill(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endMax)
	defer cancel()
	_ = process.KillFamily(ctx, "/proc", x.child.Pid)
	_ = x.child.Kill()
}

// exit is the command's, after all that it printed.
func (x *execution) exit(ctx context.Context, code int) *capsulev1.ExecExit {
	x.out.drain(ctx)
	exit := &capsulev1.ExecExit{Code: int32(code)}
	if code == process.Killed && x.payloadEnds(ctx) {
		exit.Message = endedMessage
	}
	return exit
}

// input passes on what the caller sends. It ends without error when the caller
// has nothing more to say.
func (x *execution) input() error {
	for {
		msg, err := x.stream.Recv()
		if errors.Is(err, io.EOF) {
			x.closeStdin()
			return nil
		}
		if err != nil {
			return err
		}
		switch m := msg.GetInput().(type) {
		case *capsulev1.ExecRequest_Stdin:
			if x.stdin != nil {
				// A command that reads no more loses what is left, as in a pipe.
				_, _ = x.stdin.Write(m.Stdin)
			}
		case *capsulev1.ExecRequest_StdinClosed:
			x.closeStdin()
		case *capsulev1.ExecRequest_Resize:
			x.resize(m.Resize)
		case *capsulev1.ExecRequest_Signal:
			if m.Signal < 1 || m.Signal > signalMax {
				return fmt.Errorf("signal %d: %w", m.Signal, errdefs.ErrInvalidArgument)
			}
			if err := x.child.Signal(unix.Signal(m.Signal)); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return err
			}
		}
	}
}

// closeStdin ends the command's input. A terminal has no such end.
func (x *execution) closeStdin() {
	if x.console == nil {
		x.dropStdin()
	}
}

// dropStdin frees who writes to it.
func (x *execution) dropStdin() {
	if x.stdin != nil {
		x.stdin.Close()
	}
}
