//go:build linux && machine

package lan

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"capsule/internal/contexts"
	"capsule/internal/imagetest"
	"capsule/internal/lab"
	"capsule/internal/nettest"
)

// Addresses around the capsule. The laptop is the router, too: what lies beyond it
// are addresses of its own.
const (
	laptop4, laptop6 = "192.168.70.1", "2001:db8:70::1"
	peer4, peer6     = "192.168.70.7", "2001:db8:70::7"
	far4, far6       = "203.0.113.7", "2001:db8:cafe::7"
	farPrivate       = "10.9.9.9"
)

const (
	// answered is how long an answer of a machine that is emulated may take.
	answered = time.Minute
	// closed is how long one of nobody is waited for. An answer takes a tenth of it.
	closed = 4 * time.Second
	// renewal is when the capsule asks its DHCP server again.
	renewal = 20 * time.Second
)

// neighbourhood is a capsule of the built image, a laptop and a second host.
type neighbourhood struct {
	*laptop
	machine *machine
	dhcp    *nettest.DHCP
	peer    *nettest.NS
	names   map[string]*names // by the address that serves them
	clock   *timeServer
	v4, v6  string // the capsule's
}

// name of the capsule's context, and of its machine.
const capsuleName = "neighbour"

func newNeighbourhood(t *testing.T) *neighbourhood {
	t.Helper()
	n := &neighbourhood{laptop: newLaptop(t), peer: nettest.New(t), v4: firstAddress, names: map[string]*names{}}
	here := (*nettest.NS)(nil)
	here.Addr(t, laptopLink, laptop6+"/64", "fe80::1/64")
	here.Addr(t, "lo", far4+"/32", far6+"/128", farPrivate+"/32")
	nettest.Cable(t, "peer0", n.peer, "eth0")
	if err := netlink.LinkSetMaster(here.Link(t, "peer0"), here.Link(t, laptopLink)); err != nil {
		t.Fatal(err)
	}
	n.peer.Sysctl(t, "ipv6/conf/eth0/accept_ra", "0") // it has the addresses that it is known by
	n.peer.Addr(t, "eth0", peer4+"/24", peer6+"/64")
	n.names[laptop4] = serveNames(t, here, laptop4, "192.0.2.1")
	n.names[peer4] = serveNames(t, n.peer, peer4, "192.0.2.2")
	n.clock = serveTime(t)
	serveText(t, here, "lan")
	serveText(t, n.peer, "lan")
	n.dhcp = nettest.NewDHCP(nettest.Grant{
		Server: netip.MustParsePrefix(laptopAddress), Give: netip.MustParseAddr(n.v4), DNS: netip.MustParseAddr(laptop4), Lease: time.Hour, Renew: renewal,
		More: []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptNTPServers(net.ParseIP(laptop4)))},
	})
	n.dhcp.Serve(t, nil, laptopLink)
	nettest.Advertisement{Router: netip.MustParseAddr("fe80::1"), Prefix: netip.MustParseAddr("2001:db8:70::")}.Advertise(t, nil, laptopLink)
	n.boot(t)
	return n
}

// boot makes the machine, and waits until it answers by both families.
func (n *neighbourhood) boot(t *testing.T) {
	t.Helper()
	nettest.Tap(t, "tap0", laptopLink)
	m, err := lab.Create(t.Context(), lab.Options{Name: capsuleName, Dir: t.TempDir(), Image: "../../build/capsule.img", MemoryBytes: 1 << 30, Tap: "tap0"})
	if err != nil {
		t.Fatal(err)
	}
	n.machine = &machine{Machine: m}
	t.Cleanup(func() {
		if t.Failed() {
			n.run(t, "", "capsule", "logs", "--tail", "100")
			if log, err := os.ReadFile(m.ConsoleLog()); err == nil {
				t.Logf("console: %s", log[max(0, len(log)-4000):])
			}
		}
		_ = m.Kill(context.Background())
	})
	c, err := m.Context()
	if err != nil {
		t.Fatal(err)
	}
	c.Host = net.JoinHostPort(n.v4, "50000")
	store, err := contexts.Open(filepath.Join(n.home, ".config", "capsule"))
	if err == nil {
		err = store.Put(c)
	}
	if err == nil {
		err = store.Use(c.Name)
	}
	if err != nil {
		t.Fatal(err)
	}
	start(t, n.machine)
	n.answers(t, true)
}

// answers waits for the API, and for an IPv6 address where there is to be one.
func (n *neighbourhood) answers(t *testing.T, ipv6 bool) {
	t.Helper()
	nettest.Eventually(t, 2*time.Minute, func() error {
		out, errs, code := n.run(t, "", "capsule", "info", "-o", "json")
		var info struct{ Addresses []string }
		if code != 0 || json.Unmarshal([]byte(out), &info) != nil {
			return fmt.Errorf("exit %d: %s", code, errs)
		}
		for _, a := range info.Addresses {
			if a, _, _ = strings.Cut(a, "/"); strings.HasPrefix(a, "2001:db8:70:") {
				n.v6 = a
				return nil
			}
		}
		if ipv6 {
			return fmt.Errorf("addresses %q", info.Addresses)
		}
		return nil
	})
}

// place is somewhere that asks; text is what it was told.
type place struct {
	name string
	http func(to string, limit time.Duration) (text string, err error)
	udp  func(to string, limit time.Duration) (text string, err error)
}

// host is a machine of the network, from one of its addresses; "" is any.
func host(name string, ns *nettest.NS, from string) place {
	dial := func(network, to string, limit time.Duration) (c net.Conn, err error) {
		d := net.Dialer{Timeout: limit}
		if ip := net.ParseIP(from); ip != nil && network == "tcp" {
			d.LocalAddr = &net.TCPAddr{IP: ip}
		} else if ip != nil {
			d.LocalAddr = &net.UDPAddr{IP: ip}
		}
		err = ns.Try(func() (err error) {
			c, err = d.Dial(network, to)
			return err
		})
		if err == nil {
			err = c.SetDeadline(time.Now().Add(limit))
		}
		return c, err
	}
	return place{name,
		func(to string, limit time.Duration) (string, error) {
			c, err := dial("tcp", to, limit)
			if err != nil {
				return "", err
			}
			defer c.Close()
			if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
				return "", err
			}
			answer, err := io.ReadAll(c)
			_, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
			return string(body), err
		},
		func(to string, limit time.Duration) (string, error) {
			c, err := dial("udp", to, limit)
			if err != nil {
				return "", err
			}
			defer c.Close()
			return question(c, limit)
		}}
}

// question sends a packet each 200 ms until something comes back.
func question(c net.Conn, limit time.Duration) (string, error) {
	answer := make([]byte, 1500)
	for end := time.Now().Add(limit); time.Now().Before(end); {
		if _, err := c.Write([]byte("ping")); err != nil {
			continue // nobody there: refused by an ICMP
		}
		if err := c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			return "", err
		}
		if got, err := c.Read(answer); err == nil {
			return string(answer[:got]), nil
		}
	}
	return "", fmt.Errorf("no answer within %s", limit)
}

// inside is a workload.
func (n *neighbourhood) inside(t *testing.T, workload string) place {
	ask := func(args ...string) (string, error) {
		out, errs, code := n.run(t, "", append([]string{"workload", "exec", workload, "--", "/payload"}, args...)...)
		if code != 0 {
			return "", fmt.Errorf("exit %d: %s", code, errs)
		}
		return out, nil
	}
	return place{workload,
		func(to string, _ time.Duration) (string, error) { return ask("dial", "http", to) },
		func(to string, _ time.Duration) (string, error) {
			out, err := ask("dial", "udp", to, "ping")
			_, answer, _ := strings.Cut(out, "\n") // after "connected"
			return answer, err
		}}
}

// waitsFor is until somebody answers everywhere there.
func (p place) waitsFor(t *testing.T, all ...string) {
	t.Helper()
	for _, to := range all {
		nettest.Eventually(t, 2*time.Minute, func() error {
			_, err := p.http(to, time.Second)
			return err
		})
	}
}

// reaches checks who answers there, and how it sees who asked.
func (p place) reaches(t *testing.T, to, who string, as ...string) {
	t.Helper()
	text, err := p.http(to, answered)
	if err != nil || !strings.HasPrefix(text, who+" from ") {
		t.Errorf("%s to %s: %q, %v; want an answer of %q", p.name, to, text, err, who)
		return
	}
	_, from, _ := strings.Cut(strings.TrimSpace(text), " from ")
	if seen, _, err := net.SplitHostPort(from); len(as) > 0 && (err != nil || seen != as[0]) {
		t.Errorf("%s to %s: is seen as %q, want %q", p.name, to, from, as[0])
	}
}

func (p place) reachesUDP(t *testing.T, to, who string) {
	t.Helper()
	if text, err := p.udp(to, answered); err != nil || strings.TrimSpace(text) != who+" ping" {
		t.Errorf("%s to %s/udp: %q, %v; want an answer of %q", p.name, to, text, err, who)
	}
}

// unreachable has nobody answer at any of them.
func (p place) unreachable(t *testing.T, to ...string) {
	t.Helper()
	var all sync.WaitGroup
	for _, to := range to {
		all.Go(func() {
			if text, err := p.http(to, closed); err == nil {
				t.Errorf("%s to %s: %q answers, want nobody", p.name, to, text)
			}
		})
		all.Go(func() {
			if text, err := p.udp(to, closed); err == nil {
				t.Errorf("%s to %s/udp: %q answers, want nobody", p.name, to, text)
			}
		})
	}
	all.Wait()
}

// workload is a manifest. Each serves its name by TCP and UDP on port 80.
func workload(kind, name string, more ...string) string {
	return fmt.Sprintf("kind: %s\nname: %s\nimage: net:1\ncommand: [/payload, spawn, udp, \":80\", %s, then, http, \":80\", %s]\n%s", kind, name, name, name, strings.Join(more, ""))
}

// ports of a manifest, each in the form of text or as an object.
func ports(list ...string) string {
	var b strings.Builder
	b.WriteString("ports:\n")
	for _, p := range list {
		if !strings.HasPrefix(p, "{") {
			p = fmt.Sprintf("%q", p)
		}
		fmt.Fprintf(&b, "  - %s\n", p)
	}
	return b.String()
}

// apply the manifests and wait until all run.
func (n *neighbourhood) apply(t *testing.T, manifests ...string) {
	t.Helper()
	n.must(t, strings.Join(manifests, "---\n"), "apply", "-f", "-", "--wait", "--timeout", "10m")
}

// refuses the manifest, for the reason.
func (n *neighbourhood) refuses(t *testing.T, manifest, why string) {
	t.Helper()
	if _, errs, code := n.run(t, manifest, "apply", "-f", "-"); code != 1 || !strings.Contains(errs, why) {
		t.Errorf("exit %d, %q; want %q", code, errs, why)
	}
}

func (n *neighbourhood) delete(t *testing.T, names ...string) {
	t.Helper()
	n.must(t, "", append([]string{"workload", "delete", "--wait"}, names...)...)
}

// state of a workload that these tests look at.
type state struct {
	Status struct {
		Addresses  []string
		Restarts   int
		Generation string
	}
}

func (n *neighbourhood) state(t *testing.T, name string) (s state) {
	t.Helper()
	out := n.must(t, "", "workload", "get", name, "-o", "json")
	var object struct{ Workload state }
	if err := json.Unmarshal([]byte(out), &object); err != nil {
		t.Fatal(err)
	}
	if len(object.Workload.Status.Addresses) == 0 {
		t.Fatalf("workload %q has no addresses: %s", name, out)
	}
	return object.Workload
}

// names is a DNS server.
type names struct {
	mute  atomic.Bool
	asked atomic.Int64
}

// manyAnswers are more than fit into a packet of 512 bytes, or of 1232.
const manyAnswers = 100

// serveNames knows below example.org what has one address and what has many.
func serveNames(t *testing.T, ns *nettest.NS, at, answer string) *names {
	t.Helper()
	var packets net.PacketConn
	var connections net.Listener
	ns.Do(t, func() (err error) {
		if packets, err = net.ListenPacket("udp", net.JoinHostPort(at, "53")); err == nil {
			connections, err = net.Listen("tcp", net.JoinHostPort(at, "53"))
		}
		return err
	})
	n := &names{}
	handle := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		n.asked.Add(1)
		if n.mute.Load() {
			return
		}
		r := new(dns.Msg).SetReply(q)
		count, known := map[string]int{"example.org.": 1, "many.example.org.": manyAnswers}[strings.ToLower(q.Question[0].Name)]
		if !known {
			r.Rcode = dns.RcodeNameError
		} else if q.Question[0].Qtype == dns.TypeA {
			for range count {
				r.Answer = append(r.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.ParseIP(answer)})
			}
		}
		if opt := q.IsEdns0(); w.RemoteAddr().Network() == "udp" {
			size := dns.MinMsgSize
			if opt != nil {
				size = int(opt.UDPSize())
			}
			r.Truncate(size)
		}
		_ = w.WriteMsg(r)
	})
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handle}, {Listener: connections, Handler: handle}} {
		go func() { _ = s.ActivateAndServe() }()
	}
	t.Cleanup(func() { packets.Close(); connections.Close() })
	return n
}

// serveText answers on port 80 as the payload does.
func serveText(t *testing.T, ns *nettest.NS, name string) {
	t.Helper()
	var l net.Listener
	ns.Do(t, func() (err error) {
		l, err = net.Listen("tcp", ":80")
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
				_ = c.SetDeadline(time.Now().Add(answered))
				if _, err := c.Read(make([]byte, 4096)); err == nil {
					fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n\r\n%s from %s\n", name, c.RemoteAddr())
				}
			}()
		}
	}()
}

// timeServer speaks NTP once it is told how far ahead its time is.
type timeServer struct{ ahead atomic.Pointer[time.Duration] }

// ntpEpoch is 1900 (RFC 5905, 6), in seconds before 1970.
const ntpEpoch = 2208988800

func serveTime(t *testing.T) *timeServer {
	t.Helper()
	c, err := net.ListenPacket("udp", laptop4+":123")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s := &timeServer{}
	go func() {
		b := make([]byte, 1500)
		for {
			size, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if ahead := s.ahead.Load(); ahead != nil && size >= 48 {
				_, _ = c.WriteTo(ntpAnswer(b[:48], time.Now().Add(*ahead)), from)
			}
		}
	}()
	return s
}

// ntpAnswer to a question, of a server of stratum 2 (RFC 5905, 7.3).
func ntpAnswer(question []byte, now time.Time) []byte {
	answer := make([]byte, 48)
	copy(answer, []byte{4<<3 | 4, 2, 6, 0xec, 0, 0, 0, 1, 0, 0, 0, 1, 'T', 'E', 'S', 'T'})
	copy(answer[24:32], question[40:48])
	for _, at := range []int{16, 32, 40} {
		seconds, fraction := uint32(now.Unix()+ntpEpoch), uint32(uint64(now.Nanosecond())<<32/1e9)
		copy(answer[at:], []byte{byte(seconds >> 24), byte(seconds >> 16), byte(seconds >> 8), byte(seconds),
			byte(fraction >> 24), byte(fraction >> 16), byte(fraction >> 8), byte(fraction)})
	}
	return answer
}

// image pushes what all workloads of these tests run.
func (n *neighbourhood) image(t *testing.T) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net.tar")
	write(t, path, imagetest.DockerSave(imagetest.PayloadImage(t, nil), "net:1"))
	n.must(t, "", "image", "push", path)
}
