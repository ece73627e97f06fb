package channel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// ListenVsock listens for the capsule, and for nobody inside the guest.
func ListenVsock() (net.Listener, error) {
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, Port, nil)
	if err != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w", Port, err)
	}
	return fromHost{l}, nil
}

// fromHost drops connections that begin in the guest.
type fromHost struct{ net.Listener }

func (l fromHost) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if a, ok := conn.RemoteAddr().(*vsock.Addr); ok && a.ContextID == vsock.Host {
			return conn, nil
		}
		conn.Close()
	}
}

// ListenPort makes one connection after the other of a virtio-serial port,
// whose file it owns.
func ListenPort(f *os.File) (net.Listener, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return listen(&filePort{f, raw}), nil
}

// port is a pipe of bytes to a capsule that comes and goes.
type port interface {
	// Read gives io.EOF while there is no capsule.
	Read(p []byte) (int, error)
	// Await reads, and waits while there is no capsule.
	Await(p []byte) (int, error)
	Write(p []byte) (int, error)
	SetDeadline(t time.Time) error
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	Close() error
}

// filePort is a port of the kernel. Without a capsule it reads nothing and no
// error, and the poller tells when that has changed.
type filePort struct {
	*os.File
	raw syscall.RawConn
}

func (p *filePort) Read(b []byte) (int, error)  { return p.read(b, false) }
func (p *filePort) Await(b []byte) (int, error) { return p.read(b, true) }

func (p *filePort) read(b []byte, wait bool) (n int, err error) {
	rawErr := p.raw.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), b)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		return !errors.Is(err, unix.EAGAIN) && (n != 0 || err != nil || !wait)
	})
	switch {
	case rawErr != nil:
		return 0, rawErr
	case err != nil:
		return 0, err
	case n == 0 && len(b) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// awaiting reads a port and waits for a capsule.
type awaiting struct{ port }

func (a awaiting) Read(b []byte) (int, error) { return a.Await(b) }

// portListener accepts the next connection when the last one is closed.
type portListener struct {
	port   port
	free   chan struct{} // holds a token while there is no connection
	closed chan struct{}
	close  func() error
}

func listen(p port) *portListener {
	l := &portListener{port: p, free: make(chan struct{}, 1), closed: make(chan struct{})}
	l.close = sync.OnceValue(func() error {
		close(l.closed)
		return p.Close()
	})
	l.free <- struct{}{}
	return l
}

func (l *portListener) Accept() (net.Conn, error) {
	select {
	case <-l.free:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	r := newReader(awaiting{l.port})
	if err := answer(r, l.port); err != nil {
		return nil, fmt.Errorf("wait for the capsule: %w", err)
	}
	// Only the handshake waits for a capsule: from now on its leaving is the end.
	begun, _ := r.Peek(r.Buffered())
	return &conn{listener: l, begun: begun}, nil
}

// Close ends a wait for the next connection and the one that is there.
func (l *portListener) Close() error { return l.close() }

func (l *portListener) Addr() net.Addr { return addr{} }

// addr of a port.
type addr struct{}

func (addr) Network() string { return "port" }
func (addr) String() string  { return PortName }

// conn is one connection over a port, which outlives it.
type conn struct {
	listener *portListener
	begun    []byte // read with the handshake
	reading  sync.Mutex
	writing  sync.Mutex
	mu       sync.Mutex
	closed   bool
}

func (c *conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.isClosed() {
		return 0, net.ErrClosed
	}
	if len(c.begun) > 0 {
		n := copy(p, c.begun)
		c.begun = c.begun[n:]
		return n, nil
	}
	return c.listener.port.Read(p)
}

func (c *conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.isClosed() {
		return 0, net.ErrClosed
	}
	return c.listener.port.Write(p)
}

func (c *conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Close gives the port to the next connection.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	err := c.listener.port.SetDeadline(time.Unix(1, 0)) // frees who reads and writes
	c.mu.Unlock()
	c.reading.Lock()
	c.writing.Lock()
	defer c.reading.Unlock()
	defer c.writing.Unlock()
	err = errors.Join(err, c.listener.port.SetDeadline(time.Time{}))
	c.listener.free <- struct{}{}
	return err
}

func (c *conn) LocalAddr() net.Addr  { return addr{} }
func (c *conn) RemoteAddr() net.Addr { return addr{} }

func (c *conn) SetDeadline(t time.Time) error {
	return c.deadline(c.listener.port.SetDeadline, t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	return c.deadline(c.listener.port.SetReadDeadline, t)
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.deadline(c.listener.port.SetWriteDeadline, t)
}

// deadline leaves the one alone that Close has set.
func (c *conn) deadline(set func(time.Time) error, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return set(t)
}
