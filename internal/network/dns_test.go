package network

import (
	"context"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"capsule/internal/nettest"

	"github.com/miekg/dns"
)

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
		if strings.HasPrefix(q.Question[0].Name, "nx") {
			r.Rcode = dns.RcodeNameError
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
		{"capsule.internal.", dns.TypeSOA, "NOERROR"},
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
	for range 2 {
		if got := asks(t, web, "udp", "172.30.0.1", "example.org.", dns.TypeA); got != "NOERROR 192.0.2.1" {
			t.Errorf("by failover: %q", got)
		}
	}
	w.dns.mu.Lock()
	first := w.dns.upstreams[0].Addr().String()
	w.dns.mu.Unlock()
	took := time.Duration(math.MaxInt64) // of three, since the machine may stand still
	for range 3 {
		start := time.Now()
		query(t, web, "udp", "172.30.0.1", "example.org.", dns.TypeA)
		took = min(took, time.Since(start))
	}
	if first != lan4 || took >= upstreamTimeout {
		t.Errorf("dead server asked first again: %s, %s is first", took, first)
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
