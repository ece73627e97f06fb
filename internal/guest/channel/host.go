package channel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

const (
	helloEvery = 100 * time.Millisecond
	// helloPatience is how many times a hello is sent alone. A guest that does
	// not answer may wait for the rest of what the last capsule began to send.
	helloPatience = 10
	// helloFill ends that: it is longer than a frame of HTTP/2 and its header.
	helloFill = 32 << 10
)

// DialVsock connects to the agent of the guest with the context ID. It waits for
// the guest until ctx ends, at most 20 s: the kernel alone gives up after two, which
// a guest that is emulated or starved may need.
func DialVsock(ctx context.Context, cid uint32) (net.Conn, error) {
	conn, err := connectVsock(ctx, cid)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("connect to guest %d: %w", cid, err)
	}
	return vsockConn{conn}, nil
}

func connectVsock(ctx context.Context, cid uint32) (*socket.Conn, error) {
	conn, err := socket.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0, "vsock", nil)
	if err != nil {
		return nil, err
	}
	if err = waitLonger(ctx, conn); err == nil {
		_, err = conn.Connect(ctx, &unix.SockaddrVM{CID: cid, Port: Port})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// connectMax is how long one attempt lasts at most, whatever the caller's patience:
// who calls tries again, in case that a guest lost the request with a driver's start.
const connectMax = 20 * time.Second

// waitLonger has the kernel try for as long as the caller does, up to connectMax.
func waitLonger(ctx context.Context, conn *socket.Conn) error {
	limit := connectMax
	if end, ok := ctx.Deadline(); ok {
		limit = min(limit, max(time.Until(end), time.Millisecond)) // none would mean the kernel's own
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	tv := unix.NsecToTimeval(limit.Nanoseconds())
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptTimeval(int(fd), unix.AF_VSOCK, unix.SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW, &tv)
	}); e != nil {
		return e
	}
	return os.NewSyscallError("setsockopt", err)
}

// vsockConn is a connection of which only the kernel knows the ends.
type vsockConn struct{ *socket.Conn }

func (vsockConn) LocalAddr() net.Addr  { return addr{} }
func (vsockConn) RemoteAddr() net.Addr { return addr{} }

// DialPort connects to the agent behind the Unix socket of a virtio-serial port.
// It waits for the guest until ctx ends.
func DialPort(ctx context.Context, socket string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connect to guest: %w", err)
	}
	stream, err := greet(ctx, conn)
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("connect to guest at %q: %w", socket, err)
	}
	return stream, nil
}

// greet does the capsule's side of the handshake.
func greet(ctx context.Context, conn net.Conn) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	nonce := rand.Text()
	r, answered := newReader(conn), make(chan error, 1)
	go func() { answered <- await(r, nonce) }()
	if err := sayHello(conn, nonce, answered); err != nil {
		return nil, err
	}
	if _, err := conn.Write(line(proceed, nonce)); err != nil {
		return nil, err
	}
	if !stop() { // the deadline is set, or will be
		return nil, ctx.Err()
	}
	return &stream{conn, r}, nil
}

// sayHello repeats it until it was answered.
func sayHello(conn net.Conn, nonce string, answered <-chan error) error {
	again := time.NewTicker(helloEvery)
	defer again.Stop()
	text := line(hello, nonce)
	for n := 1; ; n++ {
		if n == helloPatience {
			text = bytes.Repeat(text, helloFill/len(text))
		}
		if _, err := conn.Write(text); err != nil {
			conn.Close() // ends the reader
			return errors.Join(err, <-answered)
		}
		select {
		case err := <-answered:
			return err
		case <-again.C:
		}
	}
}

// stream is a connection of which the beginning was read.
type stream struct {
	net.Conn
	r *bufio.Reader
}

func (s *stream) Read(p []byte) (int, error) { return s.r.Read(p) }
