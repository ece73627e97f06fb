package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"capsule/internal/nettest"

	"github.com/vishvananda/netlink"
)

// memoryKV is a KV that forgets.
type memoryKV struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (k *memoryKV) Get(key string) ([]byte, bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v, ok := k.m[key]
	return v, ok, nil
}

func (k *memoryKV) Put(key string, value []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.m[key] = value
	return nil
}

func (k *memoryKV) Delete(key string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.m, key)
	return nil
}

func (k *memoryKV) Each(fn func(string, []byte) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, value := range k.m {
		if err := fn(key, value); err != nil {
			return err
		}
	}
	return nil
}

// Addresses of the capsule and of its neighbour on the LAN.
const (
	box4, box6, other4 = "192.168.88.2", "2001:db8:88::2", "192.168.88.3"
	lan4, lan6         = "192.168.88.1", "2001:db8:88::1"
)

// world is a capsule with a neighbour on its LAN.
type world struct {
	*Network
	opts Options
	lan  *nettest.NS
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{lan: nettest.New(t)}
	nettest.Cable(t, "lan", w.lan, "box")
	w.lan.Addr(t, "box", lan4+"/24", lan6+"/64")
	(*nettest.NS)(nil).Addr(t, "lan", box4+"/24", box6+"/64", other4+"/24")
	w.opts = Options{Store: &memoryKV{m: map[string][]byte{}}, Hostname: "capsule-a3f2", RunDir: t.TempDir(), NetNSDir: t.TempDir(),
		Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	w.restart(t)
	t.Cleanup(func() { w.wipe(t) })
	return w
}

// restart is what a new daemon does.
func (w *world) restart(t *testing.T) {
	t.Helper()
	if w.Network != nil {
		check(t, w.Close())
	}
	n, err := New(w.opts)
	if err != nil {
		t.Skipf("SKIPPED: this kernel lacks what a capsule's has: %v", err)
	}
	w.Network = n
}

func (w *world) wipe(t *testing.T) {
	check(t, w.Sync(context.Background(), nil))
	check(t, w.Close())
	check(t, w.Publish(context.Background(), nil))
	if l, err := netlink.LinkByName(bridgeName); err == nil {
		check(t, netlink.LinkDel(l))
	}
}

// workload attaches one and returns its machine.
func (w *world) workload(t *testing.T, name string) (*nettest.NS, Attachment) {
	t.Helper()
	at, err := w.Attach(t.Context(), name, false)
	check(t, err)
	return nettest.Open(t, at.NetNS), at
}

func (w *world) publish(t *testing.T, ports ...Published) {
	t.Helper()
	check(t, Conflicts(ports))
	check(t, w.Publish(t.Context(), ports))
}

// greet answers each TCP connection with the name and the sender's address,
// then echoes lines.
func greet(t *testing.T, ns *nettest.NS, at, name string) {
	t.Helper()
	var l net.Listener
	ns.Do(t, func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr())
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// echoUDP answers each packet with the name and what it says.
func echoUDP(t *testing.T, ns *nettest.NS, at, name string) {
	t.Helper()
	var c net.PacketConn
	ns.Do(t, func() (err error) {
		c, err = net.ListenPacket("udp", at)
		return err
	})
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(fmt.Appendf(nil, "%s %s", name, b[:n]), from)
		}
	}()
}

// patience with what should answer.
const patience = time.Minute

// dial connects and reads who answers.
func dial(ns *nettest.NS, to string, limit time.Duration) (net.Conn, *bufio.Reader, string, error) {
	var c net.Conn
	err := ns.Try(func() (err error) {
		c, err = net.DialTimeout("tcp", to, limit)
		return err
	})
	if err != nil {
		return nil, nil, "", err
	}
	r := bufio.NewReader(c)
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, nil, "", err
	}
	line, err := r.ReadString('\n')
	return c, r, strings.TrimSpace(line), err
}

// reaches checks who answers, and returns the address that it was asked from.
func reaches(t *testing.T, ns *nettest.NS, to, name string) netip.Addr {
	t.Helper()
	c, _, line, err := dial(ns, to, patience)
	if err != nil {
		t.Errorf("to %s: %v", to, err)
		return netip.Addr{}
	}
	defer c.Close()
	who, from, _ := strings.Cut(line, " ")
	if who != name {
		t.Errorf("to %s: %q answers, want %q", to, who, name)
	}
	p, _ := netip.ParseAddrPort(from)
	return p.Addr().Unmap()
}

func unreachable(t *testing.T, ns *nettest.NS, to string) {
	t.Helper()
	c, _, line, err := dial(ns, to, 300*time.Millisecond)
	if err == nil {
		c.Close()
		t.Errorf("to %s: %q answers, want nobody", to, line)
	}
}

// dialsAs connects from one of the namespace's addresses.
func dialsAs(t *testing.T, ns *nettest.NS, from, to, name string, want bool) {
	t.Helper()
	limit := 300 * time.Millisecond
	if want {
		limit = patience
	}
	var line string
	err := ns.Try(func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: limit}
		c, err := d.Dial("tcp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
			return err
		}
		line, err = bufio.NewReader(c).ReadString('\n')
		return err
	})
	if who, _, _ := strings.Cut(line, " "); (err == nil) != want || want && who != name {
		t.Errorf("from %s to %s: %q, %v; want an answer: %v", from, to, line, err, want)
	}
}

// asksUDP sends until an answer comes.
func asksUDP(ns *nettest.NS, to string, limit time.Duration) (string, error) {
	var c net.Conn
	err := ns.Try(func() (err error) {
		c, err = net.Dial("udp", to)
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	return ask(c, limit)
}

// questions counts what was asked: a late second answer to one is none to the next.
var questions atomic.Uint64

// ask sends a packet each 100 ms until an answer comes.
func ask(c net.Conn, limit time.Duration) (string, error) {
	b := make([]byte, 1500)
	question := fmt.Sprint(questions.Add(1))
	for end := time.Now().Add(limit); time.Now().Before(end); {
		if _, err := c.Write([]byte(question)); err != nil {
			continue
		}
		if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return "", err
		}
		for {
			n, err := c.Read(b)
			if err != nil {
				break
			}
			if who, to, _ := strings.Cut(string(b[:n]), " "); to == question {
				return who, nil
			}
		}
	}
	return "", errors.New("no answer")
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	return string(b)
}
