package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	guestv1 "capsule/api/capsule/guest/v1"
	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/process"
	"capsule/internal/workload"
)

const (
	chunkMax = 32 << 10 // bytes of input in one message
	// endLimit bounds the wait for the machine's end after the line to it broke.
	endLimit = 10 * time.Second
)

// Exec runs a command in a running instance. A command that can't be run gives
// its code (126, 127) and the reason on stderr, as a shell would.
func (d *Driver) Exec(ctx context.Context, id workload.ID, e workload.Exec) (int, error) {
	if len(e.Command) == 0 {
		return 0, fmt.Errorf("exec in workload %q: no command: %w", id.Name, errdefs.ErrInvalidArgument)
	}
	m, err := d.answering(ctx, id)
	if err != nil {
		return 0, err
	}
	exit, err := m.agent.exec(ctx, e)
	// Not for what it printed to be on the disk, which may take longer.
	if lost(err) && (m.over() || within(ctx, m.qemu.Done(), endLimit)) {
		exit, err = &capsulev1.ExecExit{Code: process.Killed, Message: "its machine ended"}, nil
	}
	if err != nil {
		return 0, fmt.Errorf("exec in workload %q: %w", id.Name, err)
	}
	return told(id, e, exit), nil
}

// told gives a command's code and says what there is to say about it.
func told(id workload.ID, e workload.Exec, exit *capsulev1.ExecExit) int {
	code, message := exitCode(exit.GetCode()), exit.GetMessage()
	switch {
	case message == "":
	case code == process.Killed: // by the end of the payload
		e.Complain(fmt.Sprintf("workload %q ended", id.Name))
	default:
		e.Complain(clean(message))
	}
	return code
}

// exec runs a command until it ends or ctx does.
func (a *agent) exec(ctx context.Context, e workload.Exec) (*capsulev1.ExecExit, error) {
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // frees who sends
	stream, err := a.Exec(ctx)
	if err != nil {
		return nil, refused(caller, err)
	}
	in := &execInput{stream: stream}
	if err := in.start(e); err != nil {
		return nil, refused(caller, in.reason(err))
	}
	go in.stdin(e.Stdin)
	go in.events(ctx, e)
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("the guest says not how it ended: %w", errdefs.ErrUnknown)
		}
		if err != nil {
			return nil, refused(caller, err)
		}
		switch m := msg.GetOutput().(type) {
		case *capsulev1.ExecResponse_Stdout:
			err = put(e.Stdout, m.Stdout)
		case *capsulev1.ExecResponse_Stderr:
			err = put(e.Stderr, m.Stderr)
		case *capsulev1.ExecResponse_Exit:
			return m.Exit, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func put(w io.Writer, p []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(p)
	return err
}

// execInput is what goes to a command, from several sides.
type execInput struct {
	mu     sync.Mutex
	stream guestv1.GuestService_ExecClient
}

func (in *execInput) send(r *capsulev1.ExecRequest) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.stream.Send(r)
}

// reason finds why sending failed: gRPC tells it to who receives.
func (in *execInput) reason(err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	_, err = in.stream.Recv()
	return err
}

func (in *execInput) start(e workload.Exec) error {
	return in.send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Start{Start: &capsulev1.ExecStart{
		Command: e.Command, Env: e.Env, User: e.User, WorkingDir: e.Cwd,
		Tty: e.TTY, Size: terminal(e.Size), Stdin: e.Stdin != nil,
	}}})
}

func terminal(s workload.TerminalSize) *capsulev1.TerminalSize {
	if s == (workload.TerminalSize{}) {
		return nil
	}
	return &capsulev1.TerminalSize{Rows: s.Rows, Columns: s.Columns}
}

// stdin passes on all that r has. A command that ended loses what is left.
func (in *execInput) stdin(r io.Reader) {
	if r == nil {
		return
	}
	buf := make([]byte, chunkMax)
	for {
		n, err := r.Read(buf)
		if n > 0 && in.send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Stdin{Stdin: buf[:n]}}) != nil {
			return
		}
		if err != nil {
			_ = in.send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_StdinClosed{StdinClosed: true}})
			return
		}
	}
}

// events passes on sizes and signals.
func (in *execInput) events(ctx context.Context, e workload.Exec) {
	for ctx.Err() == nil {
		r := &capsulev1.ExecRequest{}
		select {
		case s, ok := <-e.Resize:
			if !ok {
				e.Resize = nil
				continue
			}
			r.Input = &capsulev1.ExecRequest_Resize{Resize: &capsulev1.TerminalSize{Rows: s.Rows, Columns: s.Columns}}
		case n, ok := <-e.Signals:
			if !ok {
				e.Signals = nil
				continue
			}
			r.Input = &capsulev1.ExecRequest_Signal{Signal: int32(n)}
		case <-ctx.Done():
			return
		}
		if in.send(r) != nil {
			return
		}
	}
}
