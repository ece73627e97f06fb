package network

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"capsule/internal/nettest"

	"github.com/miekg/dns"
)

// asked are the names that reached an upstream.
var asked sync.Map

// upstream is a DNS server that knows one answer to all.
func upstream(t *testing.T, ns *nettest.NS, at, answer string) {
	t.Helper()
	var udp net.PacketConn
	var tcp net.Listener
	ns.Do(t, func() (err error) {
		if udp, err = net.ListenPacket("udp", net.JoinHostPort(at, "53")); err == nil {
			tcp, err = net.Listen("tcp", net.JoinHostPort(at, "53"))
		}
		return err
	})
	handle := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		asked.Store(name, true)
		if strings.HasPrefix(name, "mute") {
			return
		}
		if strings.HasPrefix(name, "cut") && w.RemoteAddr().Network() == "udp" {
			r.Truncated = true
			_ = w.WriteMsg(r)
			return
		}
		if strings.HasPrefix(name, "nx") {
			r.Rcode = dns.RcodeNameError
		} else if strings.HasPrefix(name, "large") { // more than some clients take
			for i := range 100 {
				rr, _ := dns.NewRR(fmt.Sprintf("%s 60 IN A 192.0.2.%d", name, i))
				r.Answer = append(r.Answer, rr)
			}
			if opt := q.IsEdns0(); opt != nil { // without, it takes no care
				r.Truncate(int(opt.UDPSize()))
			}
		} else {
			rr, _ := dns.NewRR(q.Question[0].Name + " 60 IN A " + answer)
			r.Answer = append(r.Answer, rr)
		}
		if strings.HasPrefix(q.Question[0].Name, "broken") {
			r = new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		}
		_ = w.WriteMsg(r)
	})
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: handle}, {Listener: tcp, Handler: handle}} {
		go func() { _ = s.ActivateAndServe() }()
	}
	t.Cleanup(func() {
		udp.Close()
		tcp.Close()
	})
}

// asks is said of the answer. A machine that is too busy for the upstream's in time
// says SERVFAIL, and is asked again, as resolvers do.
func asks(t *testing.T, ns *nettest.NS, network, server, name string, kind uint16) (got string) {
	t.Helper()
	for range 3 {
		if got = said(query(t, ns, network, server, name, kind)); got != "SERVFAIL" {
			break
		}
	}
	return got
}

// query asks the capsule from a namespace.
func query(t *testing.T, ns *nettest.NS, network, server, name string, kind uint16) *dns.Msg {
	t.Helper()
	var c net.Conn
	ns.Do(t, func() (err error) {
		c, err = net.Dial(network, net.JoinHostPort(server, "53"))
		return err
	})
	defer c.Close()
	check(t, c.SetDeadline(time.Now().Add(patience)))
	conn := &dns.Conn{Conn: c}
	check(t, conn.WriteMsg(new(dns.Msg).SetQuestion(name, kind)))
	r, err := conn.ReadMsg()
	check(t, err)
	return r
}

// said is the answer in short.
func said(r *dns.Msg) string {
	words := []string{dns.RcodeToString[r.Rcode]}
	for _, rr := range r.Answer {
		f := strings.Fields(rr.String())
		words = append(words, f[len(f)-1])
	}
	return strings.Join(words, " ")
}

func TestDNS(t *testing.T) {
	w := newWorld(t)
	web, _ := w.workload(t, "web")
	w.workload(t, "db")
	w.workload(t, "stopped")
	check(t, w.SetStopped("stopped", true))
	asked.Clear()
	upstream(t, w.lan, lan4, "192.0.2.1")
	check(t, w.SetUpstreams([]netip.Addr{netip.MustParseAddr(lan4)}))
	// A workload that publishes DNS itself does not take ours away.
	w.publish(t, Published{Workload: "db", Port: 53, Target: 53, Protocol: "udp"}, Published{Workload: "db", Port: 53, Target: 53, Protocol: "tcp"})
	for _, test := range []struct {
		name string
		kind uint16
		want string
	}{
		{"db.", dns.TypeA, "NOERROR 172.30.0.3"},
		{"DB.Capsule.Internal.", dns.TypeA, "NOERROR 172.30.0.3"},
		{"db.capsule.internal.", dns.TypeAAAA, "NOERROR fd7a:9c1e:30::3"},
		{"db.capsule.internal.", dns.TypeMX, "NOERROR"},
		{"db.", dns.TypeHTTPS, "NOERROR"},
		{"capsule.internal.", dns.TypeSOA, "NOERROR 5"},
		{"capsule.internal.", dns.TypeA, "NOERROR"},
		{"CAPSULE-a3f2.", dns.TypeA, "NOERROR 172.30.0.1"},
		{"capsule-a3f2.capsule.internal.", dns.TypeAAAA, "NOERROR fd7a:9c1e:30::1"},
		{"stopped.", dns.TypeA, "NOERROR"},
		{"stopped.capsule.internal.", dns.TypeAAAA, "NOERROR"},
		{"4.0.30.172.in-addr.arpa.", dns.TypePTR, "NOERROR stopped.capsule.internal."},
		{"1.0.30.172.in-addr.arpa.", dns.TypePTR, "NOERROR capsule-a3f2.capsule.internal."},
		{"3.0.30.172.in-addr.arpa.", dns.TypeA, "NOERROR"},
		{"gone.capsule.internal.", dns.TypeA, "NXDOMAIN"},
		{"a.db.capsule.internal.", dns.TypeA, "NXDOMAIN"},
		{"3.0.30.172.in-addr.arpa.", dns.TypePTR, "NOERROR db.capsule.internal."},
		{"3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.e.1.c.9.a.7.d.f.ip6.arpa.", dns.TypePTR, "NOERROR db.capsule.internal."},
		{"9.0.30.172.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{"example.org.", dns.TypeA, "NOERROR 192.0.2.1"},
		{"printer.", dns.TypeA, "NOERROR 192.0.2.1"},
		{"nx.example.org.", dns.TypeA, "NXDOMAIN"},
		{"broken.example.org.", dns.TypeA, "SERVFAIL"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			for _, server := range []string{"172.30.0.1", "fd7a:9c1e:30::1"} {
				if got := asks(t, web, network, server, test.name, test.kind); got != test.want {
					t.Errorf("%s %s %d by %s: %q, want %q", server, test.name, test.kind, network, got, test.want)
				}
			}
		}
	}
	// What is ours is nobody else's to say or to know.
	asked.Range(func(name, _ any) bool {
		if n := strings.ToLower(name.(string)); strings.HasSuffix(n, "capsule.internal.") || strings.Contains(n, "30.172.in-addr") || n == "db." || n == "stopped." {
			t.Errorf("upstream was asked for %q", n)
		}
		return true
	})
	check(t, w.SetStopped("stopped", false))
	if got := asks(t, web, "udp", "172.30.0.1", "stopped.", dns.TypeA); got != "NOERROR 172.30.0.4" {
		t.Errorf("started again: %q", got)
	}
}

// An answer that there is none is final, and says for how long.
func TestDNSNegative(t *testing.T) {
	w := newWorld(t)
	web, _ := w.workload(t, "web")
	for _, name := range []string{"gone.capsule.internal.", "capsule.internal.", "9.0.30.172.in-addr.arpa.",
		"9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.e.1.c.9.a.7.d.f.ip6.arpa.", "web."} {
		r := query(t, web, "udp", "172.30.0.1", name, dns.TypeTXT)
		if !r.Authoritative || len(r.Answer) > 0 || len(r.Ns) != 1 {
			t.Errorf("%s: %v", name, r)
			continue
		}
		soa, ok := r.Ns[0].(*dns.SOA)
		if !ok || soa.Minttl != ownTTL || !dns.IsSubDomain(soa.Hdr.Name, name) {
			t.Errorf("%s: %v", name, r.Ns)
		}
	}
}

// Answers are as large as the client takes them, and the rest comes by TCP.
func TestDNSSizes(t *testing.T) {
	w := newWorld(t)
	web, _ := w.workload(t, "web")
	upstream(t, w.lan, lan4, "192.0.2.1")
	check(t, w.SetUpstreams([]netip.Addr{netip.MustParseAddr(lan4)}))
	for _, test := range []struct {
		name, network string
		edns          uint16 // 0 is none
		answers       int
		cut           bool
	}{
		{"large.example.", "udp", 0, 30, true},
		{"large.example.", "udp", 512, 30, true},
		{"large.example.", "udp", 1232, 75, true},
		{"large.example.", "udp", 4096, 100, false},
		{"large.example.", "tcp", 0, 100, false},
		{"cut.example.", "udp", 1232, 0, true},
		{"cut.example.", "tcp", 0, 1, false},
		{"web.", "udp", 1232, 1, false},
		{"web.", "udp", 0, 1, false},
	} {
		t.Run(fmt.Sprint(test.name, test.network, test.edns), func(t *testing.T) {
			q := new(dns.Msg).SetQuestion(test.name, dns.TypeA)
			if test.edns > 0 {
				q.SetEdns0(test.edns, false)
			}
			var r *dns.Msg
			for range 3 { // a busy machine's upstream is late
				if r = sends(t, web, test.network, q); r.Rcode == dns.RcodeSuccess {
					break
				}
			}
			size := max(dns.MinMsgSize, int(test.edns))
			r.Compress = true
			if test.network == "udp" && r.Len() > size {
				t.Errorf("%d bytes for a client that takes %d", r.Len(), size)
			}
			if r.Truncated != test.cut || !test.cut && len(r.Answer) != test.answers || test.cut && len(r.Answer) > test.answers {
				t.Errorf("truncated %v, %d answers", r.Truncated, len(r.Answer))
			}
			if test.name == "web." && (r.IsEdns0() != nil) != (test.edns > 0) {
				t.Errorf("EDNS of the answer: %v", r.IsEdns0())
			}
		})
	}
}

// sends sends a query and waits for the answer.
func sends(t *testing.T, ns *nettest.NS, network string, q *dns.Msg) *dns.Msg {
	t.Helper()
	var c net.Conn
	ns.Do(t, func() (err error) {
		c, err = net.Dial(network, "172.30.0.1:53")
		return err
	})
	defer c.Close()
	check(t, c.SetDeadline(time.Now().Add(patience)))
	conn := &dns.Conn{Conn: c, UDPSize: dns.MaxMsgSize - 1}
	check(t, conn.WriteMsg(q))
	r, err := conn.ReadMsg()
	check(t, err)
	return r
}

// A workload that asks without end gets no answers itself, and takes them from
// nobody else.
func TestDNSBounds(t *testing.T) {
	w := newWorld(t)
	web, _ := w.workload(t, "web")
	flood, _ := w.workload(t, "flood")
	upstream(t, w.lan, lan4, "192.0.2.1")
	check(t, w.SetUpstreams([]netip.Addr{netip.MustParseAddr(lan4)}))
	var c net.Conn
	flood.Do(t, func() (err error) {
		c, err = net.Dial("udp", "172.30.0.1:53")
		return err
	})
	defer c.Close()
	ended := make(chan struct{})
	refused := 0
	go func() {
		defer close(ended)
		conn := &dns.Conn{Conn: c}
		for {
			if r, err := conn.ReadMsg(); err != nil {
				return
			} else if r.Rcode == dns.RcodeServerFailure {
				refused++
			}
		}
	}()
	conn := &dns.Conn{Conn: c}
	for range 2000 {
		check(t, conn.WriteMsg(new(dns.Msg).SetQuestion("mute.example.", dns.TypeA)))
		if n := len(w.dns.slots); n > clientQueriesMax {
			t.Fatalf("%d questions of one workload wait", n)
		}
	}
	// By TCP: packets may be lost in between, and query sends but one.
	if got := asks(t, web, "tcp", "172.30.0.1", "example.org.", dns.TypeA); got != "NOERROR 192.0.2.1" {
		t.Errorf("another workload: %q", got)
	}
	if got := asks(t, flood, "tcp", "172.30.0.1", "web.", dns.TypeA); got != "NOERROR 172.30.0.2" {
		t.Errorf("what needs no upstream: %q", got)
	}
	check(t, c.Close())
	<-ended
	if refused < 100 {
		t.Errorf("%d refused", refused)
	}

	// The same by connections.
	open := 0
	for range 2 * connectionsMax {
		flood.Do(t, func() error {
			c, err := net.DialTimeout("tcp", "172.30.0.1:53", patience)
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
			conn := &dns.Conn{Conn: c}
			check(t, c.SetDeadline(time.Now().Add(patience)))
			if conn.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA)) == nil {
				if _, err := conn.ReadMsg(); err == nil {
					open++
				}
			}
			return nil
		})
	}
	// Those that were silent for long make place again.
	if open < connectionsMax || open == 2*connectionsMax {
		t.Errorf("%d connections of %d", open, 2*connectionsMax)
	}
	if got := asks(t, web, "tcp", "172.30.0.1", "db.example.", dns.TypeA); got != "NOERROR 192.0.2.1" {
		t.Errorf("another workload: %q", got)
	}
}

// BOOT-08: the new server counts at once, for who runs already.
func TestUpstreamsChange(t *testing.T) {
	w := newWorld(t)
	web, at := w.workload(t, "web")
	host := w.HostAttachment()
	upstream(t, w.lan, lan4, "192.0.2.1")
	check(t, w.SetUpstreams([]netip.Addr{netip.MustParseAddr("192.168.88.99")}))
	check(t, w.SetDomain("home.example"))
	inode := func(path string) uint64 {
		info, err := os.Stat(path)
		check(t, err)
		return info.Sys().(*syscall.Stat_t).Ino
	}
	before := inode(host.ResolvConf)
	if got, want := readFile(t, at.ResolvConf), "search capsule.internal home.example\nnameserver 172.30.0.1\n"; got != want {
		t.Errorf("resolv.conf of a workload %q, want %q", got, want)
	}
	if got, want := readFile(t, host.ResolvConf), "search home.example\nnameserver 192.168.88.99\n"; got != want {
		t.Errorf("resolv.conf of the host %q, want %q", got, want)
	}
	if got := said(query(t, web, "udp", "172.30.0.1", "example.org.", dns.TypeA)); got != "SERVFAIL" {
		t.Errorf("by a dead server: %q", got)
	}
	// One of two is dead: failover, and the live one is first from then on.
	check(t, w.SetUpstreams([]netip.Addr{netip.MustParseAddr("192.168.88.99"), netip.MustParseAddr(lan4)}))
	took := time.Duration(math.MaxInt64) // of three, since the machine may stand still
	for range missesMax {
		start := time.Now()
		if got := asks(t, web, "udp", "172.30.0.1", "example.org.", dns.TypeA); got != "NOERROR 192.0.2.1" {
			t.Errorf("by failover: %q", got)
		}
		took = min(took, time.Since(start))
	}
	if took >= upstreamTimeout {
		t.Errorf("a dead server stalls for %s", took)
	}
	w.dns.mu.Lock()
	first := w.dns.upstreams[0].Addr().String()
	w.dns.mu.Unlock()
	for range 3 {
		start := time.Now()
		query(t, web, "udp", "172.30.0.1", "example.org.", dns.TypeA)
		took = min(took, time.Since(start))
	}
	if first != lan4 || took >= nextAfter {
		t.Errorf("dead server asked first again: %s, %s is first", took, first)
	}
	// The same servers told again are no news, and after a while the first one has
	// its chance again.
	check(t, w.SetUpstreams([]netip.Addr{netip.MustParseAddr("192.168.88.99"), netip.MustParseAddr(lan4)}))
	if first := w.dns.servers()[0].Addr().String(); first != lan4 {
		t.Errorf("%s is first", first)
	}
	w.dns.mu.Lock()
	w.dns.preferred = w.dns.preferred.Add(-2 * preferFor)
	w.dns.mu.Unlock()
	if first := w.dns.servers()[0].Addr().String(); first == lan4 {
		t.Error("the first one is never asked again")
	}
	check(t, w.SetDomain(""))
	check(t, w.SetUpstreams(nil))
	if got, want := readFile(t, host.ResolvConf), "nameserver 192.168.88.99\nnameserver 192.168.88.1\n"; got != want {
		t.Errorf("resolv.conf of the host %q, want %q", got, want)
	}
	if inode(host.ResolvConf) != before {
		t.Error("resolv.conf of the host is another file now")
	}
	// A new daemon knows them from the file.
	w.restart(t)
	if got := asks(t, web, "udp", "172.30.0.1", "example.org.", dns.TypeA); got != "NOERROR 192.0.2.1" {
		t.Errorf("after a restart: %q", got)
	}
}

func TestHostsFiles(t *testing.T) {
	w := newWorld(t)
	_, at := w.workload(t, "web")
	const local = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
	const web = "172.30.0.2 web.capsule.internal web\nfd7a:9c1e:30::2 web.capsule.internal web\n"
	if got := readFile(t, at.Hosts); got != local+web {
		t.Errorf("hosts of a workload:\n%s", got)
	}
	const box = "172.30.0.1 capsule-a3f2.capsule.internal capsule-a3f2\n"
	if got := readFile(t, w.HostAttachment().Hosts); got != local+box+web {
		t.Errorf("hosts of the capsule:\n%s", got)
	}
	check(t, w.Detach(context.Background(), "web"))
	if got := readFile(t, w.HostAttachment().Hosts); got != local+box {
		t.Errorf("hosts of the capsule after detach:\n%s", got)
	}
}

// Names that meet others: the capsule's own, the domain that DHCP names, and our own
// zone. A workload has its name whatever else is called so.
func TestNamesCollide(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"capsule-a3f2", "home", "internal", "capsule"} {
		w.workload(t, name)
	}
	web, at := w.workload(t, "web")
	asked.Clear()
	upstream(t, w.lan, lan4, "192.0.2.1")
	check(t, w.SetUpstreams([]netip.Addr{netip.MustParseAddr(lan4)}))
	check(t, w.SetDomain("home"))
	if got, want := readFile(t, at.ResolvConf), "search capsule.internal home\nnameserver 172.30.0.1\n"; got != want {
		t.Errorf("resolv.conf %q, want %q", got, want)
	}
	for name, want := range map[string]string{
		"capsule-a3f2.":                   "NOERROR 172.30.0.2",
		"capsule-a3f2.capsule.internal.":  "NOERROR 172.30.0.2",
		"home.":                           "NOERROR 172.30.0.3",
		"internal.":                       "NOERROR 172.30.0.4",
		"capsule.":                        "NOERROR 172.30.0.5",
		"capsule.internal.":               "NOERROR",
		"capsule.capsule.internal.":       "NOERROR 172.30.0.5",
		"web.home.":                       "NOERROR 192.0.2.1",
		"internal.home.":                  "NOERROR 192.0.2.1",
		"web.capsule.internal.home.":      "NOERROR 192.0.2.1",
		"xcapsule.internal.":              "NOERROR 192.0.2.1",
		"capsule.internal.example.":       "NOERROR 192.0.2.1",
		"1.0.30.172.in-addr.arpa.":        "NXDOMAIN",
		"home.capsule.internal.internal.": "NOERROR 192.0.2.1",
	} {
		if got := asks(t, web, "udp", "172.30.0.1", name, dns.TypeA); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := readFile(t, w.HostAttachment().Hosts); !strings.Contains(got, "172.30.0.2 capsule-a3f2.") || strings.Contains(got, "172.30.0.1 ") {
		t.Errorf("hosts of the capsule:\n%s", got)
	}
}

func FuzzReverseAddr(f *testing.F) {
	f.Add("1.0.30.172.in-addr.arpa")
	f.Add(strings.Repeat("f.", 32) + "ip6.arpa")
	f.Add("x.in-addr.arpa")
	f.Fuzz(func(t *testing.T, name string) {
		a, ok := reverseAddr(name)
		if !ok {
			return
		}
		back, err := dns.ReverseAddr(a.String())
		if err != nil || a.Is6() != strings.HasSuffix(name, ".ip6.arpa") || (a.Is6() && !a.Is4In6() && !strings.EqualFold(back, name+".")) {
			t.Errorf("%q read as %s, which is %q", name, a, back)
		}
	})
}

func FuzzNameservers(f *testing.F) {
	f.Add("search x\nnameserver 192.0.2.1\nnameserver ::1\n")
	f.Fuzz(func(t *testing.T, content string) {
		servers := nameservers([]byte(content))
		if again := nameservers(resolvConf(servers)); !slices.Equal(again, servers[:min(len(servers), nameserversMax)]) {
			t.Errorf("%v written and read: %v", servers, again)
		}
	})
}
