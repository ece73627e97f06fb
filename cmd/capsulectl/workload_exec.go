package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc"

	capsulev1 "capsule/api/capsule/v1"
)

const (
	stdinBytes = 32 << 10 // of one message
	// impatience is how many interrupts a command may ignore before the
	// connection is cut.
	impatience = 3
)

// commandExits are the exit codes of what runs a command on a capsule.
const commandExits = `that of the command, 126 when it can't be run, 127 when there is none of that name, 128 + signal when a signal ended it; 1, 2 and 4 also for failures of capsulectl itself, which come with an "error:" line`

// ExecOptions of "workload exec".
type ExecOptions struct {
	Stdin      bool
	TTY        bool
	Env        []string
	User       string
	WorkingDir string
}

func newWorkloadExecCommand(a *app) *cobra.Command {
	var o ExecOptions
	cmd := &cobra.Command{
		Use:   "exec NAME [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a command in a running workload",
		Long: `Runs a command beside the workload's own program. Output and errors stay apart
and byte for byte, unless -t gives the command a terminal. Signals are passed
on; a third interrupt cuts the connection.`,
		Example: `  capsulectl workload exec web -- /web -version
  capsulectl workload exec db -it -- sh
  pg_dump shop | capsulectl workload exec db -i -- psql shop`,
		Annotations: map[string]string{"exits": commandExits},
		Args:        cobra.MinimumNArgs(2),
		RunE:        func(cmd *cobra.Command, args []string) error { return runWorkloadExec(cmd.Context(), a, o, args) },
	}
	flags := cmd.Flags()
	flags.SetInterspersed(true)
	flags.BoolVarP(&o.Stdin, "stdin", "i", false, "give the command this program's input")
	flags.BoolVarP(&o.TTY, "tty", "t", false, "give the command a terminal")
	flags.StringArrayVarP(&o.Env, "env", "e", nil, "set NAME=value for the command (repeatable)")
	flags.StringVarP(&o.User, "user", "u", "", "run as USER[:GROUP]; default is the workload's")
	flags.StringVarP(&o.WorkingDir, "workdir", "w", "", "folder to run in; default is the workload's")
	return cmd
}

func runWorkloadExec(ctx context.Context, a *app, o ExecOptions, args []string) error {
	start := &capsulev1.ExecStart{
		Name: args[0], Command: args[1:], Env: o.Env, Tty: o.TTY, Stdin: o.Stdin, User: o.User, WorkingDir: o.WorkingDir,
	}
	return runCommand(ctx, a, start, func(ctx context.Context, c *client) (execClient, error) { return c.workloads.Exec(ctx) })
}

// execClient is the stream of a command, wherever it runs.
type execClient = grpc.BidiStreamingClient[capsulev1.ExecRequest, capsulev1.ExecResponse]

// runCommand runs a command on the capsule with our streams, and gives its exit code
// as an error.
func runCommand(ctx context.Context, a *app, start *capsulev1.ExecStart, open func(context.Context, *client) (execClient, error)) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	// Signals are the command's, so they don't end the call.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stream, err := open(ctx, c)
	if err != nil {
		return err
	}
	s := &execSession{stream: stream, ui: a.ui, cancel: cancel}
	restore, err := s.start(start)
	if err != nil {
		return err
	}
	defer restore()
	stop := s.forwardSignals(start.GetTty())
	defer stop()
	if start.GetStdin() {
		go s.sendInput()
	}
	return s.receive()
}

// execSession is one command's streams.
type execSession struct {
	stream execClient
	ui     *ui
	cancel context.CancelFunc
	mu     sync.Mutex // of sending
}

func (s *execSession) send(r *capsulev1.ExecRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.Send(r)
}

// start sends the command and, with a terminal of our own, makes it raw.
func (s *execSession) start(start *capsulev1.ExecStart) (restore func(), err error) {
	if start.GetTty() {
		start.Size = terminalSize()
		if name := os.Getenv("TERM"); name != "" && isTerminal(os.Stdin) {
			start.Env = append([]string{"TERM=" + name}, start.Env...)
		}
	}
	restore = func() {}
	if start.GetTty() && start.GetStdin() && isTerminal(os.Stdin) {
		state, err := term.MakeRaw(int(os.Stdin.Fd()))
		if err != nil {
			return nil, fmt.Errorf("prepare the terminal: %w", err)
		}
		restore = func() { term.Restore(int(os.Stdin.Fd()), state) } //nolint:errcheck // nothing else can be done
	}
	err = s.send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Start{Start: start}})
	if err != nil && !errors.Is(err, io.EOF) { // on EOF the answer says why
		restore()
		return nil, err
	}
	return restore, nil
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// terminalSize is that of the first of our streams that is a terminal.
func terminalSize() *capsulev1.TerminalSize {
	for _, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if columns, rows, err := term.GetSize(int(f.Fd())); err == nil {
			return &capsulev1.TerminalSize{Rows: uint32(rows), Columns: uint32(columns)} //nolint:gosec // cells of a terminal
		}
	}
	return nil
}

// sendInput passes our input on until its end; the answer tells of failures.
func (s *execSession) sendInput() {
	buffer := make([]byte, stdinBytes)
	for {
		n, err := s.ui.in.Read(buffer)
		if n > 0 {
			if s.send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Stdin{Stdin: buffer[:n]}}) != nil {
				return
			}
		}
		if err != nil {
			s.send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_StdinClosed{StdinClosed: true}}) //nolint:errcheck // as above
			return
		}
	}
}

// forwardSignals passes signals and sizes of the terminal on until stopped.
func (s *execSession) forwardSignals(tty bool) (stop func()) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	done := make(chan struct{})
	if tty {
		go watchSize(done, func() {
			if size := terminalSize(); size != nil {
				s.send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Resize{Resize: size}}) //nolint:errcheck // the answer says why
			}
		})
	}
	go func() {
		for interrupts := 0; ; {
			select {
			case <-done:
				return
			case sig := <-signals:
				if sig == os.Interrupt {
					interrupts++
				}
				if interrupts == impatience {
					s.cancel()
				}
				number, _ := sig.(syscall.Signal)
				s.send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Signal{Signal: int32(number)}}) //nolint:errcheck,gosec // as above
			}
		}
	}()
	return func() { signal.Stop(signals); close(done) }
}

// receive writes the command's output until it ends.
func (s *execSession) receive() error {
	for {
		answer, err := s.stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the capsule ended the command without its exit code")
		}
		if err != nil {
			return err
		}
		switch out := answer.GetOutput().(type) {
		case *capsulev1.ExecResponse_Stdout:
			_, err = s.ui.out.Write(out.Stdout)
		case *capsulev1.ExecResponse_Stderr:
			_, err = s.ui.err.Write(out.Stderr)
		case *capsulev1.ExecResponse_Exit:
			return s.exit(out.Exit)
		}
		if err != nil {
			return fmt.Errorf("write the command's output: %w", err)
		}
	}
}

func (s *execSession) exit(e *capsulev1.ExecExit) error {
	if e.GetMessage() != "" {
		s.ui.note("%s", e.GetMessage())
	}
	if e.GetCode() == 0 {
		return nil
	}
	return remoteExit(e.GetCode())
}
