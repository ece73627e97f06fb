package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/workload"
)

// Limits of one exec.
const (
	chunkMax      = 32 << 10 // bytes of output in one message
	execWordsMax  = 1000     // of the command, and of its environment
	execBytesMax  = 128 << 10
	signalsQueued = 16
	signalMax     = 64
	terminalMax   = 4096 // rows or columns
)

// execStream is that of a command, wherever it runs.
type execStream = grpc.BidiStreamingServer[capsulev1.ExecRequest, capsulev1.ExecResponse]

func (s *workloads) Exec(stream capsulev1.WorkloadService_ExecServer) error {
	start, err := receiveStart(stream)
	if err != nil {
		return err
	}
	if len(start.GetCommand()) == 0 || start.GetCommand()[0] == "" {
		return fmt.Errorf("exec in %q: no command: %w", start.GetName(), errdefs.ErrInvalidArgument)
	}
	id, driver, err := s.running(stream.Context(), start.GetName())
	if err != nil {
		return err
	}
	return runExec(stream, start, func(ctx context.Context, e workload.Exec) (int, error) { return driver.Exec(ctx, id, e) })
}

// receiveStart is the first message of a stream.
func receiveStart(stream execStream) (*capsulev1.ExecStart, error) {
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	return first.GetStart(), checkStart(first.GetStart())
}

// runExec serves a command until it has ended.
func runExec(stream execStream, start *capsulev1.ExecStart, run func(context.Context, workload.Exec) (int, error)) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	in := newExecInput(start.GetStdin())
	defer in.close()
	go func() {
		// A client that is gone takes its command with it.
		if err := in.run(ctx, stream); err != nil {
			cancel()
		}
	}()
	out := &execOutput{stream: stream}
	e := workload.Exec{
		Command: start.GetCommand(), Env: start.GetEnv(), User: start.GetUser(), Cwd: start.GetWorkingDir(),
		TTY: start.GetTty(), Size: size(start.GetSize()), Resize: in.resize, Signals: in.signals,
		Stdout: execWriter{out, false}, Stderr: execWriter{out, true},
	}
	if start.GetStdin() {
		e.Stdin = in.stdin
	}
	code, err := run(ctx, e)
	if err != nil {
		return err
	}
	return out.send(&capsulev1.ExecResponse{Output: &capsulev1.ExecResponse_Exit{Exit: &capsulev1.ExecExit{Code: int32(code)}}})
}

func checkStart(start *capsulev1.ExecStart) error {
	bytes := 0
	for _, list := range [][]string{start.GetCommand(), start.GetEnv()} {
		for _, word := range list {
			bytes += len(word)
		}
	}
	switch {
	case start == nil:
		return fmt.Errorf("exec must begin with its start: %w", errdefs.ErrInvalidArgument)
	case len(start.GetCommand()) > execWordsMax || len(start.GetEnv()) > execWordsMax || bytes > execBytesMax:
		return fmt.Errorf("exec in %q: command or environment is too long: %w", start.GetName(), errdefs.ErrInvalidArgument)
	case start.GetSize().GetRows() > terminalMax || start.GetSize().GetColumns() > terminalMax:
		return fmt.Errorf("exec in %q: terminal is too large: %w", start.GetName(), errdefs.ErrInvalidArgument)
	}
	return nil
}

func size(s *capsulev1.TerminalSize) workload.TerminalSize {
	return workload.TerminalSize{Rows: min(s.GetRows(), terminalMax), Columns: min(s.GetColumns(), terminalMax)}
}

// execInput takes what the client sends apart.
type execInput struct {
	stdin   *io.PipeReader
	write   *io.PipeWriter
	wants   bool // stdin was announced
	resize  chan workload.TerminalSize
	signals chan int
}

func newExecInput(wants bool) *execInput {
	in := &execInput{wants: wants, resize: make(chan workload.TerminalSize, 1), signals: make(chan int, signalsQueued)}
	in.stdin, in.write = io.Pipe()
	return in
}

func (in *execInput) close() {
	_ = in.stdin.Close() // frees a write that waits
	_ = in.write.Close()
}

// run ends without error when the client has closed its side in good order.
func (in *execInput) run(ctx context.Context, stream execStream) error {
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return in.write.Close()
		}
		if err != nil {
			return err
		}
		switch m := msg.GetInput().(type) {
		case *capsulev1.ExecRequest_Stdin:
			if in.wants {
				// A command that reads no more loses what is left, as in a pipe.
				_, _ = in.write.Write(m.Stdin)
			}
		case *capsulev1.ExecRequest_StdinClosed:
			_ = in.write.Close()
		case *capsulev1.ExecRequest_Resize:
			in.newest(size(m.Resize))
		case *capsulev1.ExecRequest_Signal:
			if m.Signal < 1 || m.Signal > signalMax {
				return fmt.Errorf("signal %d: %w", m.Signal, errdefs.ErrInvalidArgument)
			}
			select {
			case in.signals <- int(m.Signal):
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// newest replaces a size that nobody took yet.
func (in *execInput) newest(s workload.TerminalSize) {
	select {
	case <-in.resize:
	default:
	}
	in.resize <- s
}

// execOutput sends for two writers.
type execOutput struct {
	mu     sync.Mutex
	stream execStream
}

func (o *execOutput) send(r *capsulev1.ExecResponse) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.stream.Send(r)
}

type execWriter struct {
	out    *execOutput
	stderr bool
}

func (w execWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		// The message is encoded before Send returns: p may be reused then.
		part := p[done:min(done+chunkMax, len(p))]
		r := &capsulev1.ExecResponse{Output: &capsulev1.ExecResponse_Stdout{Stdout: part}}
		if w.stderr {
			r.Output = &capsulev1.ExecResponse_Stderr{Stderr: part}
		}
		if err := w.out.send(r); err != nil {
			return done, err
		}
		done += len(part)
	}
	return len(p), nil
}
