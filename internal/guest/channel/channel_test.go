package channel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A fakePort is a virtio-serial port with QEMU and its socket: bytes outlive the
// capsule's connections. A deaf guest isn't told that the capsule left.
type fakePort struct {
	deaf bool

	mu       sync.Mutex
	changed  *sync.Cond
	in, out  []byte
	attached bool
	late     bool // the deadline has passed
	closed   bool
}

const queueMax = 64 << 10

func newFakePort(t *testing.T, deaf bool) (p *fakePort, socket string) {
	t.Helper()
	p = &fakePort{deaf: deaf}
	p.changed = sync.NewCond(&p.mu)
	socket = filepath.Join(t.TempDir(), "port")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); p.qemu(l) }()
	t.Cleanup(func() { l.Close(); p.Close(); <-done })
	return p, socket
}

// qemu serves one connection after the other.
func (p *fakePort) qemu(l net.Listener) {
	for {
		host, err := l.Accept()
		if err != nil {
			return
		}
		p.set(func() { p.attached = true })
		var out sync.WaitGroup
		out.Go(func() { p.toHost(host) })
		buf := make([]byte, 4096)
		for err == nil {
			var n int
			if n, err = host.Read(buf); n > 0 {
				p.mu.Lock()
				for len(p.in) > queueMax && !p.closed {
					p.changed.Wait()
				}
				p.in = append(p.in, buf[:n]...)
				p.changed.Broadcast()
				p.mu.Unlock()
			}
		}
		p.set(func() { p.attached = false })
		host.Close()
		out.Wait()
	}
}

func (p *fakePort) toHost(host net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.attached && !p.closed {
		if len(p.out) == 0 {
			p.changed.Wait()
			continue
		}
		n := min(len(p.out), 1000) // torn anywhere
		part := p.out[:n:n]
		p.out = p.out[n:]
		p.changed.Broadcast()
		p.mu.Unlock()
		_, err := host.Write(part)
		p.mu.Lock()
		if err != nil {
			return
		}
	}
}

func (p *fakePort) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.changed.Broadcast()
}

func (p *fakePort) Read(b []byte) (int, error)  { return p.read(b, p.deaf) }
func (p *fakePort) Await(b []byte) (int, error) { return p.read(b, true) }

func (p *fakePort) read(b []byte, wait bool) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.closed:
			return 0, net.ErrClosed
		case p.late:
			return 0, os.ErrDeadlineExceeded
		case len(p.in) > 0:
			n := copy(b, p.in)
			p.in = p.in[n:]
			p.changed.Broadcast()
			return n, nil
		case !p.attached && !wait:
			return 0, io.EOF
		}
		p.changed.Wait()
	}
}

func (p *fakePort) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.closed:
			return 0, net.ErrClosed
		case p.late:
			return 0, os.ErrDeadlineExceeded
		case p.attached && len(p.out) < queueMax:
			p.out = append(p.out, b...)
			p.changed.Broadcast()
			return len(b), nil
		}
		p.changed.Wait()
	}
}

func (p *fakePort) SetDeadline(t time.Time) error {
	p.set(func() { p.late = !t.IsZero() && t.Before(time.Now()) })
	return nil
}
func (p *fakePort) SetReadDeadline(t time.Time) error  { return p.SetDeadline(t) }
func (p *fakePort) SetWriteDeadline(t time.Time) error { return p.SetDeadline(t) }

func (p *fakePort) Close() error {
	p.set(func() { p.closed = true })
	return nil
}

// serveEcho is a guest that repeats lines, and drops a connection on "!", as
// gRPC does on what is no frame.
func serveEcho(t *testing.T, l net.Listener) {
	t.Helper()
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			echo(c)
		}
	}()
}

func echo(c net.Conn) {
	defer c.Close()
	lines := bufio.NewReader(c)
	for {
		text, err := lines.ReadString('\n')
		if err != nil || text == "\n" || strings.HasPrefix(text, mark) {
			return
		}
		if _, err := io.WriteString(c, text); err != nil {
			return
		}
	}
}

func dial(t *testing.T, socket string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := DialPort(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func ask(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text+"\n"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text)+1)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text+"\n" {
		t.Fatalf("asked %q, got %q, %v", text, got, err)
	}
}

// A new connection gets nothing of an older one, whatever either had in flight.
func TestReconnect(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		p, socket := newFakePort(t, deaf)
		serveEcho(t, listen(p))
		for _, left := range []string{
			"",
			"unanswered\n",
			strings.Repeat("x", 3*queueMax) + "\n", // its answer is cut
			"the rest of a frame that never comes",
			"\n" + mark + " " + hello + " older\n" + mark + " " + proceed + " older\n",
		} {
			c := dial(t, socket)
			ask(t, c, "first "+rand.Text())
			ask(t, c, strings.Repeat("y", 5000))
			_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)) // the guest may take no more
			_, _ = io.WriteString(c, left)
			c.Close()
		}
		ask(t, dial(t, socket), "last")
	}
}

// The guest's end of a connection is free again when the capsule left, and when
// the guest closed it itself with both directions busy.
func TestCloseFreesThePort(t *testing.T) {
	p, socket := newFakePort(t, false)
	l := listen(p)
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	host := dial(t, socket)
	guest := <-accepted
	var busy sync.WaitGroup
	busy.Go(func() { _, _ = io.Copy(io.Discard, guest) })
	busy.Go(func() { _, _ = io.Copy(guest, zeros{}) })
	_, _ = io.ReadFull(host, make([]byte, 100_000))
	if err := guest.Close(); err != nil {
		t.Fatal(err)
	}
	busy.Wait()
	if err := guest.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("deadline of a closed connection: %v", err)
	}
	host.Close()
	host = dial(t, socket)
	guest = <-accepted
	host.Close()
	if n, err := guest.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the capsule left, guest read %d, %v", n, err)
	}
	guest.Close()
	l.Close()
	if _, ok := <-accepted; ok {
		t.Error("a closed listener accepted")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A guest that sends anything but its answer costs a bounded buffer, and the
// wait ends with the caller's patience.
func TestHostileGuest(t *testing.T) {
	for name, garbage := range map[string]string{
		"zeros":       string(make([]byte, 4096)),
		"lines":       strings.Repeat("\n", 4096),
		"other nonce": strings.Repeat("\n"+mark+" ready 1\n", 100),
		"echo":        "\n" + mark + " hello x\n\n" + mark + " go x\n",
	} {
		socket := filepath.Join(t.TempDir(), "port")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			c, err := l.Accept()
			for err == nil {
				_, err = io.WriteString(c, garbage)
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if _, err := DialPort(ctx, socket); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		l.Close()
	}
}

func TestDialNobody(t *testing.T) {
	if _, err := DialPort(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
}

// The listener over a real file with a poller: a pair of sockets is like a port
// whose capsule never leaves.
func TestListenPort(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	hostFile := os.NewFile(uintptr(fds[1]), "host")
	defer hostFile.Close()
	l, err := ListenPort(os.NewFile(uintptr(fds[0]), "port"))
	if err != nil {
		t.Fatal(err)
	}
	serveEcho(t, l)
	for range 3 {
		conn, err := net.FileConn(hostFile)
		if err != nil {
			t.Fatal(err)
		}
		c, err := greet(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		ask(t, c, "hello")
		if _, err := io.WriteString(c, "\n"); err != nil { // echo closes
			t.Fatal(err)
		}
		c.Close()
	}
}

// What a peer sends never makes the reader keep more than a line, take a line
// that was not sent, or read past the handshake.
func FuzzReadLine(f *testing.F) {
	f.Add([]byte("\n"+mark+" hello abc\n"), uint8(3))
	f.Add([]byte(mark+" ready abc"), uint8(1))
	f.Add(append(bytes.Repeat([]byte("x"), lineMax), []byte(mark+" go abc\nrest")...), uint8(200))
	f.Fuzz(func(t *testing.T, sent []byte, torn uint8) {
		r := newReader(tornReader{bytes.NewReader(sent), int(torn)%64 + 1})
		for {
			word, nonce, err := readLine(r)
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				break
			}
			if whole := mark + " " + word + " " + nonce + "\n"; len(whole) > lineMax || !bytes.Contains(sent, []byte(whole)) {
				t.Fatalf("line %q was not sent", whole)
			}
		}
		// The line after it, whatever it was, is found.
		r = newReader(tornReader{io.MultiReader(bytes.NewReader(sent), bytes.NewReader(line(proceed, "last")), strings.NewReader("stream")), int(torn)%64 + 1})
		for {
			word, nonce, err := readLine(r)
			if err != nil {
				t.Fatalf("the last line was missed: %v", err)
			}
			if word == proceed && nonce == "last" {
				break
			}
		}
		if rest, _ := io.ReadAll(r); string(rest) != "stream" && !bytes.Contains(sent, []byte("last")) {
			t.Fatalf("after the handshake came %q", rest)
		}
	})
}

type tornReader struct {
	r io.Reader
	n int
}

func (r tornReader) Read(p []byte) (int, error) { return r.r.Read(p[:min(len(p), r.n)]) }
