package debug

import (
	"context"
	"io"
	"os"
	"sync"

	"capsule/internal/terminal"
	"capsule/internal/workload"
)

// streams are our side of a command's.
type streams struct {
	console *terminal.Terminal // nil without one
	in      *os.File           // nil when it reads end of file at once
	outputs []*os.File
	moving  sync.WaitGroup // of outputs
}

// open makes them, and the command's side.
func open(e workload.Exec) (s *streams, theirs [3]*os.File, err error) {
	s = &streams{}
	if e.TTY {
		s.console, theirs, err = terminal.Open("/dev/ptmx", e.Size.Rows, e.Size.Columns)
		if err == nil {
			s.in, s.outputs = s.console.File, []*os.File{s.console.File}
		}
		return s, theirs, err
	}
	defer func() {
		if err == nil {
			return
		}
		s.close()
		for _, f := range theirs {
			if f != nil {
				f.Close()
			}
		}
	}()
	if e.Stdin == nil {
		theirs[0], err = os.Open(os.DevNull)
	} else {
		theirs[0], s.in, err = os.Pipe()
	}
	for i := 1; i < 3 && err == nil; i++ {
		var ours *os.File
		if ours, theirs[i], err = os.Pipe(); err == nil {
			s.outputs = append(s.outputs, ours)
		}
	}
	return s, theirs, err
}

// move passes all on, in both directions, until the streams end or are closed. A
// reader that is slow makes the command wait.
func (s *streams) move(e workload.Exec) {
	for i, from := range s.outputs {
		to := e.Stdout
		if i == 1 {
			to = e.Stderr
		}
		s.moving.Go(func() { _, _ = io.Copy(to, from) }) // of a terminal the end is EIO
	}
	if s.in == nil || e.Stdin == nil {
		return
	}
	go func() {
		_, _ = io.Copy(s.in, e.Stdin)
		if s.console == nil { // a terminal has no such end
			s.in.Close()
		}
	}()
}

func (s *streams) resize(size workload.TerminalSize) {
	if s.console != nil {
		s.console.Resize(size.Rows, size.Columns)
	}
}

// drain waits until all output was taken; nobody writes any more.
func (s *streams) drain(ctx context.Context) {
	done := make(chan struct{})
	go func() { s.moving.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// close lets go of them, and waits until nothing is given to their reader any more.
func (s *streams) close() {
	for _, f := range s.outputs {
		f.Close()
	}
	if s.in != nil {
		s.in.Close()
	}
	s.moving.Wait()
}
