package guest

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// quietMax ends the wait for output after a program's end when nothing comes
	// any more: a child that it left behind may hold the pipe for ever.
	quietMax = 2 * time.Second
	// quietLook is between two looks for that: a machine that stood still for a
	// while was not quiet.
	quietLook = quietMax / 10
	// stuckMax ends the wait for a reader that takes nothing.
	stuckMax = 30 * time.Second
	copyMax  = 32 << 10 // bytes at a time
)

// An outlet moves what programs print to whom it concerns. A reader that is slow
// makes the programs wait.
type outlet struct {
	streams sync.WaitGroup
	sources []*os.File
	writing atomic.Int32  // writes that the reader has not taken yet
	moved   chan struct{} // something was taken
}

func newOutlet() *outlet { return &outlet{moved: make(chan struct{}, 1)} }

// add moves what is read from source to w, until the source's writers are gone.
func (o *outlet) add(w io.Writer, source *os.File) {
	o.sources = append(o.sources, source)
	o.streams.Add(1)
	go guarded("output", func() {
		defer o.streams.Done()
		defer source.Close() // a writer of it must not wait for nobody
		buf := make([]byte, copyMax)
		for {
			n, err := source.Read(buf)
			if n > 0 && o.write(w, buf[:n]) != nil {
				return
			}
			if err != nil { // the end; of a terminal it is EIO
				return
			}
		}
	})
}

func (o *outlet) write(w io.Writer, p []byte) error {
	o.writing.Add(1)
	_, err := w.Write(p)
	o.writing.Add(-1)
	select {
	case o.moved <- struct{}{}:
	default:
	}
	return err
}

// drain waits until all output was taken, or none comes any more, or the reader
// takes none for long, or ctx ends. It tells whether all was taken.
func (o *outlet) drain(ctx context.Context) bool {
	done := make(chan struct{})
	go func() { o.streams.Wait(); close(done) }()
	look := time.NewTicker(quietLook)
	defer look.Stop()
	for quiet := time.Duration(0); ; {
		select {
		case <-done:
			return true
		case <-ctx.Done():
			return false
		case <-o.moved:
			quiet = 0
		case <-look.C:
			quiet += quietLook
			if quiet >= quietMax && o.writing.Load() == 0 || quiet >= stuckMax {
				return false
			}
		}
	}
}

// close lets go of sources that are still open.
func (o *outlet) close() {
	for _, source := range o.sources {
		source.Close()
	}
}

// portWriter writes to a virtio-serial port. What comes while nobody holds the
// other end is dropped: a logger that died must not stop the payload.
type portWriter struct{ raw syscall.RawConn }

func newPortWriter(port *os.File) (portWriter, error) {
	raw, err := port.SyscallConn()
	return portWriter{raw}, err
}

func (w portWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		var n int
		var err error
		rawErr := w.raw.Write(func(fd uintptr) bool {
			n, err = unix.Write(int(fd), p[done:])
			if errors.Is(err, unix.EAGAIN) && !connected(fd) {
				n, err = len(p)-done, nil
			}
			return !errors.Is(err, unix.EAGAIN)
		})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err := errors.Join(rawErr, err); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

func connected(fd uintptr) bool {
	poll := []unix.PollFd{{Fd: int32(fd)}}
	_, _ = unix.Poll(poll, 0)
	return poll[0].Revents&unix.POLLHUP == 0
}
