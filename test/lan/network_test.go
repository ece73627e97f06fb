//go:build linux && machine

package lan

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"

	"capsule/internal/nettest"
)

// One capsule of the built image, and on its network a laptop that is its router and
// a second host: who reaches what, by both families, from and to both kinds. Rows of
// ../shared/cases.md are named where they are settled.
func TestNetwork(t *testing.T) {
	n := newNeighbourhood(t)
	n.image(t)
	for _, row := range []struct {
		name string
		slow bool // only when tests are to take long
		run  func(*neighbourhood, *testing.T)
	}{
		{"NET-01 conflicts", false, (*neighbourhood).conflicts},
		{"NET-03 UDP", true, (*neighbourhood).recreated},
		{"NET-04 hairpin", false, (*neighbourhood).hairpin},
		{"NET-06 loopback and bridge", true, (*neighbourhood).tricks},
		{"from", true, (*neighbourhood).from},
		{"lan deny", true, (*neighbourhood).denied},
		{"ranges", true, (*neighbourhood).ranges},
		{"microVM", true, (*neighbourhood).bothKinds},
		{"NET-06 without IPv6", true, (*neighbourhood).withoutIPv6},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.slow {
				skipSlow(t)
			}
			row.run(n, t)
		})
	}
}

// skipSlow leaves out what takes minutes on an emulated machine, unless tests are to
// take long. What it is about has a test in namespaces too.
func skipSlow(t *testing.T) {
	t.Helper()
	if os.Getenv("CAPSULE_TEST_LONG") == "" {
		t.Skip("takes minutes; set CAPSULE_TEST_LONG=1")
	}
}

// at is a port of the capsule, by both families.
func (n *neighbourhood) at(port int) []string {
	return []string{net.JoinHostPort(n.v4, strconv.Itoa(port)), net.JoinHostPort(n.v6, strconv.Itoa(port))}
}

func (n *neighbourhood) peerHost() place { return host("the peer", n.peer, "") }

// A claim of what another has is refused by the holder's name, and breaks nothing;
// other addresses and protocols are other ports; what is deleted is free.
func (n *neighbourhood) conflicts(t *testing.T) {
	peer := n.peerHost()
	n.apply(t, workload("Container", "a", ports("8080:80", "8100-8110:8100-8110")))
	serves := func() {
		t.Helper()
		for i := range 100 {
			if text, err := peer.http(n.at(8080)[i%2], closed); err != nil || !strings.HasPrefix(text, "a from ") {
				t.Errorf("request %d: %q, %v", i, text, err)
			}
		}
	}
	peer.waitsFor(t, n.at(8080)...) // it runs before it listens
	serves()
	const held = `is already published by workload "a"`
	for port, why := range map[string]string{
		"8080:80":                   "port 8080/tcp " + held,
		"127.0.0.1:8080:80":         held,
		"[::]:8080:80":              held,
		"8105-8120:8105-8120":       held,
		"8000-9000:8000-9000":       held,
		"8110:80":                   held,
		"50000:80":                  "port 50000/tcp is the capsule's own API",
		"49999-50001:49999-50001":   "port 50000/tcp is the capsule's own API",
		n.v4 + ":50000:80":          "port 50000/tcp is the capsule's own API",
		"127.0.0.1:50000:50000/tcp": "port 50000/tcp is the capsule's own API",
	} {
		n.refuses(t, workload("Container", "b", ports(port)), why)
	}
	serves()
	n.apply(t, workload("Container", "c", ports("8080:80/udp", "50000:80/udp")))
	serves()
	n.apply(t, workload("Container", "d", ports(n.v4+":8090:80")), workload("Container", "e", ports("["+n.v6+"]:8090:80")))
	serves()
	peer.waitsFor(t, n.at(8090)...)
	for _, to := range n.at(8080) {
		peer.reachesUDP(t, to, "c")
	}
	peer.reaches(t, n.at(8090)[0], "d")
	peer.reaches(t, n.at(8090)[1], "e")
	n.must(t, "", "workload", "delete", "a")
	n.apply(t, workload("Container", "b", ports("8080:80")))
	peer.waitsFor(t, n.at(8080)...)
	for _, to := range n.at(8080) {
		peer.reaches(t, to, "b")
	}
	n.delete(t, "b", "c", "d", "e")
	peer.unreachable(t, append(n.at(8080), n.at(8090)...)...)
}

// A client of UDP that keeps its port meets the new holder, which has other addresses.
func (n *neighbourhood) recreated(t *testing.T) {
	serve := func(name string) string {
		return "kind: Container\nname: dns\nimage: net:1\ncommand: [/payload, udp, \":53\", " + name + "]\n" + ports("5300:53/udp")
	}
	n.apply(t, serve("first"))
	before := n.state(t, "dns").Status.Addresses
	clients := map[string]net.Conn{}
	for _, to := range n.at(5300) {
		n.peer.Do(t, func() (err error) {
			clients[to], err = net.Dial("udp", to)
			return err
		})
		defer clients[to].Close()
		if text, err := question(clients[to], answered); text != "first ping" {
			t.Errorf("%s: %q, %v", to, text, err)
		}
	}
	// It goes on sending meanwhile. What is declared again before it is gone keeps its
	// addresses.
	gone := make(chan struct{})
	var sending sync.WaitGroup
	for _, c := range clients {
		sending.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-gone:
					return
				case <-tick.C:
					_, _ = c.Write([]byte("ping"))
				}
			}
		})
	}
	n.delete(t, "dns")
	n.apply(t, serve("second"))
	ready := time.Now()
	close(gone)
	sending.Wait()
	if after := n.state(t, "dns").Status.Addresses; fmt.Sprint(after) == fmt.Sprint(before) {
		t.Errorf("the same addresses again: %v", after)
	}
	for to, c := range clients {
		for { // what the first one said last may lie there yet
			text, err := question(c, answered)
			if err != nil {
				t.Errorf("%s: %v", to, err)
			}
			if text == "second ping" || err != nil {
				break
			}
		}
	}
	took := time.Since(ready)
	t.Logf("it was met after %s", took)
	if limit := 2 * time.Second * patience; took > limit {
		t.Errorf("it was met after %s, at most %s", took, limit)
	}
	n.delete(t, "dns")
}

// By the capsule's address to oneself, to a sibling, from the capsule, and from a
// neighbour: by both families and protocols.
func (n *neighbourhood) hairpin(t *testing.T) {
	n.apply(t, workload("Container", "a", ports("8200:80", "8200:80/udp")), workload("Container", "b"), hostWorkload())
	for _, p := range []place{n.inside(t, "a"), n.inside(t, "b"), n.inside(t, "agent"), n.peerHost()} {
		for _, to := range n.at(8200) {
			p.reaches(t, to, "a")
			p.reachesUDP(t, to, "a")
		}
	}
	n.delete(t, "a", "b", "agent")
}

// hostWorkload lives in the capsule's own network; it publishes 9001 to the LAN.
func hostWorkload() string {
	return "kind: Container\nname: agent\nimage: net:1\nnetwork: host\ncommand: [/payload, http, \":9001\", agent]\n" +
		ports("{hostPort: 9001, port: 9001, from: lan}")
}

// What is published to the capsule alone, and what isn't published at all, is closed
// to a neighbour that knows every way there.
func (n *neighbourhood) tricks(t *testing.T) {
	peer := n.peerHost()
	open := []string{"8303:80", "8303:80/udp"}
	for _, protocol := range []string{"tcp", "udp"} {
		open = append(open, "127.0.0.1:8301:80/"+protocol, "[::1]:8302:80/"+protocol, "172.30.0.1:8304:80/"+protocol)
	}
	n.apply(t, workload("Container", "a", ports(open...)), hostWorkload())
	box := n.inside(t, "agent")
	for _, to := range []string{"127.0.0.1:8301", "[::1]:8302", "127.0.0.1:8303", "[::1]:8303", "172.30.0.1:8304"} {
		box.reaches(t, to, "a")
		box.reachesUDP(t, to, "a")
	}
	peer.reaches(t, n.at(8303)[0], "a", peer4)
	peer.reaches(t, n.at(8303)[1], "a", peer6)
	var shut []string
	for _, port := range []int{80, 53, 8301, 8302, 8304} {
		shut = append(shut, n.at(port)...)
	}
	peer.unreachable(t, shut...)
	n.scan(t, n.v4, 8303)
	n.scan(t, n.v6, 8303)

	addresses := n.state(t, "a").Status.Addresses
	undo := n.takes(t)
	shut = []string{"127.0.0.1:8301", "127.0.0.1:8303", "127.0.0.2:8301", "[::1]:8302", "[::1]:8303",
		"172.30.0.1:53", "172.30.0.1:8303", "172.30.0.1:8304", "[fd7a:9c1e:30::1]:53", "[fd7a:9c1e:30::1]:8303"}
	for _, a := range addresses {
		shut = append(shut, net.JoinHostPort(a, "80"))
	}
	peer.unreachable(t, shut...)
	// Nor does it pass for a workload.
	host("the peer as a workload", n.peer, "172.30.0.77").unreachable(t, n.at(8303)[0])
	host("the peer as a workload", n.peer, "fd7a:9c1e:30::77").unreachable(t, n.at(8303)[1])
	undo()
	peer.reaches(t, n.at(8303)[0], "a", peer4)
	n.delete(t, "a", "agent")
}

// takes has the peer take the capsule's loopback and bridge for networks that the
// capsule is the router of.
func (n *neighbourhood) takes(t *testing.T) (undo func()) {
	t.Helper()
	for _, link := range []string{"all", "eth0"} {
		n.peer.Sysctl(t, "ipv4/conf/"+link+"/route_localnet", "1")
		n.peer.Sysctl(t, "ipv4/conf/"+link+"/rp_filter", "0")
	}
	// Without loopback addresses of its own, nothing keeps the packets there.
	var own []*netlink.Addr
	for _, a := range []string{"127.0.0.1/8", "::1/128"} {
		parsed, err := netlink.ParseAddr(a)
		if err == nil {
			err = n.peer.Handle.AddrDel(n.peer.Link(t, "lo"), parsed)
		}
		if err != nil {
			t.Fatal(err)
		}
		own = append(own, parsed)
	}
	for _, to := range []string{"127.0.0.0/8", "172.30.0.0/16"} {
		n.peer.Route(t, to, n.v4)
	}
	for _, to := range []string{"::1/128", "fd7a:9c1e:30::/64"} {
		n.peer.Route(t, to, n.v6)
	}
	n.peer.Addr(t, "lo", "172.30.0.77/32", "fd7a:9c1e:30::77/128")
	return func() {
		for _, a := range own {
			if err := n.peer.Handle.AddrAdd(n.peer.Link(t, "lo"), a); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// scan finds nothing open below 1024, and of those above that others know only the
// API and what is published.
func (n *neighbourhood) scan(t *testing.T, at string, published ...int) {
	t.Helper()
	list := []int{2375, 2376, 5353, 6443, 8080, 9001, 10250, 50000, 50001}
	for port := range 1023 {
		list = append(list, port+1)
	}
	var mu sync.Mutex
	var open []int
	var all sync.WaitGroup
	places := make(chan struct{}, 256)
	for _, port := range append(list, published...) {
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			var c net.Conn
			err := n.peer.Try(func() (err error) {
				c, err = net.DialTimeout("tcp", net.JoinHostPort(at, strconv.Itoa(port)), closed)
				return err
			})
			if err != nil {
				return
			}
			c.Close()
			mu.Lock()
			defer mu.Unlock()
			open = append(open, port)
		})
	}
	all.Wait()
	want := map[int]bool{50000: true, 9001: true}
	for _, port := range published {
		want[port] = true
	}
	for _, port := range open {
		if !want[port] {
			t.Errorf("port %d of %s is open", port, at)
		}
		delete(want, port)
	}
	if len(want) > 0 {
		t.Errorf("closed at %s: %v", at, want)
	}
}

// Who may connect, from where.
func (n *neighbourhood) from(t *testing.T) {
	n.apply(t, hostWorkload(), workload("Container", "a", ports(
		"{hostPort: 8401, port: 80, from: lan}", "{hostPort: 8402, port: 80, from: "+far4+"}",
		"{hostPort: 8403, port: 80, from: \"2001:db8:cafe::/48\"}", "{hostPort: 8404, port: 80}",
		"{hostPort: 8405, port: 80, from: lan, protocol: udp}")))
	here := (*nettest.NS)(nil)
	sources := map[string]place{
		peer4: host("the peer by IPv4", n.peer, peer4), peer6: host("the peer by IPv6", n.peer, peer6),
		far4: host("far by IPv4", here, far4), far6: host("far by IPv6", here, far6),
	}
	for port, may := range map[int][]string{
		8401: {peer4, peer6}, 9001: {peer4, peer6}, 8402: {far4}, 8403: {far6}, 8404: {peer4, peer6, far4, far6},
	} {
		who := "a"
		if port == 9001 {
			who = "agent"
		}
		allowed := map[string]bool{}
		for _, from := range may {
			allowed[from] = true
		}
		for from, p := range sources {
			to := n.at(port)[0]
			if netip.MustParseAddr(from).Is6() {
				to = n.at(port)[1]
			}
			if allowed[from] {
				p.reaches(t, to, who, from)
			} else {
				p.unreachable(t, to)
			}
		}
		for _, to := range n.at(port) {
			n.inside(t, "a").reaches(t, to, who)
			n.inside(t, "agent").reaches(t, to, who)
		}
	}
	sources[peer4].reachesUDP(t, n.at(8405)[0], "a")
	sources[far4].unreachable(t, n.at(8405)[0])
	n.delete(t, "a", "agent")
}

// A workload that is denied the LAN reaches the internet and other workloads, no
// neighbour, and is reached by its ports.
func (n *neighbourhood) denied(t *testing.T) {
	n.apply(t, workload("Container", "open", ports("8501:80")), workload("Container", "kept", ports("8502:80"), "network: {mode: bridge, lan: deny}\n"))
	neighbours := []string{laptop4 + ":80", peer4 + ":80", "[" + laptop6 + "]:80", "[" + peer6 + "]:80", farPrivate + ":80"}
	outside := []string{far4 + ":80", "[" + far6 + "]:80"}
	open, kept := n.inside(t, "open"), n.inside(t, "kept")
	for _, to := range append(outside, neighbours...) {
		open.reaches(t, to, "lan")
	}
	n.keptOff(t, kept, outside, neighbours)
	for _, to := range n.at(8501) {
		kept.reaches(t, to, "open")
	}
	kept.reaches(t, "open:80", "open")
	for _, to := range n.at(8502) {
		n.peerHost().reaches(t, to, "kept")
	}
	n.asks(t, "kept", "udp", "example.org.", "A", "NOERROR 192.0.2.1")
	n.delete(t, "open", "kept")
}

// keptOff is what a denied workload reaches, and what it doesn't. A connection that
// nobody answers takes it a minute.
func (n *neighbourhood) keptOff(t *testing.T, kept place, outside, neighbours []string) {
	t.Helper()
	for _, to := range outside {
		kept.reaches(t, to, "lan")
	}
	var all sync.WaitGroup
	for _, to := range neighbours {
		all.Go(func() {
			if text, err := kept.http(to, closed); err == nil {
				t.Errorf("%s to %s: %q answers, want nobody", kept.name, to, text)
			}
		})
	}
	all.Wait()
}

// rangeCost is what a range of 1,000 ports may cost, in bytes.
const rangeCost = 50 << 20

// Wide ranges lead port by port and cost little.
func (n *neighbourhood) ranges(t *testing.T) {
	manifest := func(more string) string {
		return "kind: Container\nname: wide\nimage: net:1\ncommand: [/payload, spawn, udp, \":20999\", wide, then, http, \":20999\", wide]\n" + more
	}
	n.apply(t, manifest(""))
	before := n.available(t)
	n.apply(t, manifest(ports("20000-20999:20000-20999", "20000-20999:20000-20999/udp", "21000-21999:20000-20999", "21000-21999:20000-20999/udp")))
	after := n.available(t)
	t.Logf("4,000 ports cost %d KiB", (before-after)>>10)
	if before-after > rangeCost {
		t.Errorf("4,000 ports cost %d MiB", (before-after)>>20)
	}
	for _, port := range []int{20999, 21999} {
		for _, to := range n.at(port) {
			n.peerHost().reaches(t, to, "wide")
			n.peerHost().reachesUDP(t, to, "wide")
			n.inside(t, "wide").reaches(t, to, "wide")
		}
	}
	n.peerHost().unreachable(t, n.at(22000)...)
	n.delete(t, "wide")
}

// available memory of the capsule: the most of some looks, since others come and go.
func (n *neighbourhood) available(t *testing.T) (most int64) {
	t.Helper()
	for range 5 {
		var info struct {
			MemoryAvailable int64 `json:",string"`
		}
		if err := json.Unmarshal([]byte(n.must(t, "", "capsule", "info", "-o", "json")), &info); err != nil {
			t.Fatal(err)
		}
		most = max(most, info.MemoryAvailable)
		<-time.After(time.Second)
	}
	return most
}

// asks is a question to the server that a workload's resolv.conf names.
func (n *neighbourhood) asks(t *testing.T, workload, network, name, kind, want string) {
	t.Helper()
	out, errs, code := n.run(t, "", "workload", "exec", workload, "--", "/payload", "ask", network, name, kind)
	if code != 0 || strings.TrimSpace(out) != want {
		t.Errorf("%s asks for %s of %s by %s: %q, %q; want %q", workload, kind, name, network, out, errs, want)
	}
}

// bothKinds start a microVM, which takes minutes on a machine that is emulated: all
// that needs one comes after it.
func (n *neighbourhood) bothKinds(t *testing.T) {
	n.apply(t, workload("Container", "a", ports("8600:80", "8600:80/udp")), hostWorkload(),
		"kind: Container\nname: job\nimage: net:1\nnetwork: none\ncommand: [/payload, sleep, 100h]\n")
	n.must(t, workload("MicroVM", "vm", ports("8700:80", "8700:80/udp", "127.0.0.1:8701:80"), "network: {mode: bridge, lan: deny}\nresources:\n  memory: 64MiB\n"),
		"apply", "-f", "-", "--wait", "--timeout", "20m")
	nettest.Eventually(t, 2*time.Minute, func() error {
		if log := n.must(t, "", "workload", "logs", "vm"); strings.Count(log, "listening") < 2 {
			return fmt.Errorf("it says %q", log)
		}
		return nil
	})
	for _, row := range []struct {
		name string
		run  func(*neighbourhood, *testing.T)
	}{
		{"NET-04 hairpin", (*neighbourhood).hairpinVM},
		{"names", (*neighbourhood).answersNames},
		{"BOOT-08 other DNS servers", (*neighbourhood).changesServers},
		{"lan deny", (*neighbourhood).deniedVM},
		{"LIFE-07 clock", (*neighbourhood).steps},
	} {
		t.Run(row.name, func(t *testing.T) { row.run(n, t) })
	}
	n.delete(t, "vm", "job")
}

// hairpinVM goes through the capsule's address from and to the microVM.
func (n *neighbourhood) hairpinVM(t *testing.T) {
	vm, a, box := n.inside(t, "vm"), n.inside(t, "a"), n.inside(t, "agent")
	for _, to := range n.at(8600) {
		vm.reaches(t, to, "a")
		vm.reachesUDP(t, to, "a")
	}
	for _, to := range n.at(8700) {
		for _, p := range []place{vm, a, box, n.peerHost()} {
			p.reaches(t, to, "vm")
			p.reachesUDP(t, to, "vm")
		}
	}
	n.peerHost().reaches(t, n.at(8700)[0], "vm", peer4)
	n.peerHost().reaches(t, n.at(8700)[1], "vm", peer6)
	box.reaches(t, "127.0.0.1:8701", "vm")
	n.peerHost().unreachable(t, n.at(8701)...)
}

// answersNames to both kinds alike.
func (n *neighbourhood) answersNames(t *testing.T) {
	many := "NOERROR" + strings.Repeat(" 192.0.2.1", manyAnswers)
	for _, asker := range []string{"a", "vm"} {
		for _, name := range []string{"a", "vm"} {
			addresses := n.state(t, name).Status.Addresses
			if len(addresses) != 2 {
				t.Fatalf("addresses of %s: %v", name, addresses)
			}
			for _, full := range []string{name + ".", name + ".capsule.internal."} {
				n.asks(t, asker, "udp", full, "A", "NOERROR "+addresses[0])
				n.asks(t, asker, "tcp", full, "AAAA", "NOERROR "+addresses[1])
				n.asks(t, asker, "udp", full, "MX", "NOERROR")
			}
			if out := n.must(t, "", "workload", "exec", asker, "--", "/payload", "lookup", name+".capsule.internal"); !strings.Contains(out, addresses[0]) || !strings.Contains(out, addresses[1]) {
				t.Errorf("%s looks up %s: %q", asker, name, out)
			}
		}
		for _, test := range [][4]string{
			{"udp", "gone.capsule.internal.", "A", "NXDOMAIN"},
			{"udp", "example.org.", "A", "NOERROR 192.0.2.1"},
			{"udp", "example.org.", "AAAA", "NOERROR"},
			{"udp", "nx.example.org.", "A", "NXDOMAIN"},
			{"tcp", "many.example.org.", "A", many},
		} {
			n.asks(t, asker, test[0], test[1], test[2], test[3])
		}
		if out := n.must(t, "", "workload", "exec", asker, "--", "/payload", "lookup", "many.example.org"); strings.Count(out, "192.0.2.1") != manyAnswers {
			t.Errorf("%s looks up what is larger than a packet: %q", asker, out)
		}
	}
	out := n.must(t, "", "workload", "exec", "agent", "--", "/payload", "lookup", "a", "example.org")
	if !strings.Contains(out, n.state(t, "a").Status.Addresses[0]) || !strings.Contains(out, "example.org 192.0.2.1\n") {
		t.Errorf("a workload in the capsule's own network: %q", out)
	}
}

// changesServers has DHCP name another DNS server, and the old one gone: who runs asks
// the new one, whatever network it is on, and is not started again.
func (n *neighbourhood) changesServers(t *testing.T) {
	workloads := []string{"a", "vm", "agent"}
	look := func() (all []string) {
		for _, name := range append(workloads, "job") {
			var o struct {
				Workload struct {
					Status struct{ Restarts, RunningGeneration, StartedAt any }
				}
			}
			if err := json.Unmarshal([]byte(n.must(t, "", "workload", "get", name, "-o", "json")), &o); err != nil {
				t.Fatal(err)
			}
			all = append(all, fmt.Sprint(name, o.Workload.Status))
		}
		return all
	}
	before, seen := look(), n.dhcp.Count()
	n.names[laptop4].mute.Store(true)
	n.dhcp.Set(func(g *nettest.Grant) { g.DNS = netip.MustParseAddr(peer4) })
	nettest.Eventually(t, 2*renewal, func() error {
		if len(n.dhcp.Requests(seen, dhcpv4.MessageTypeRequest)) == 0 {
			return fmt.Errorf("no renewal came")
		}
		return nil
	})
	renewed := time.Now()
	for _, name := range workloads {
		nettest.Eventually(t, 30*time.Second, func() error {
			out, errs, _ := n.run(t, "", "workload", "exec", name, "--", "/payload", "lookup", "example.org")
			if strings.TrimSpace(out) != "example.org 192.0.2.2" {
				return fmt.Errorf("%s is told %q, %q", name, out, errs)
			}
			return nil
		})
	}
	took := time.Since(renewed)
	t.Logf("all ask the new one after %s", took)
	if limit := 30 * time.Second * patience; took > limit {
		t.Errorf("it took %s, at most %s", took, limit)
	}
	if out := n.must(t, "", "workload", "exec", "job", "--", "/payload", "cat", "/etc/resolv.conf"); out != "" {
		t.Errorf("a workload without a network: %q", out)
	}
	if after := look(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("it was %q, it is %q", before, after)
	}
}

// deniedVM is kept off the LAN by what its own kernel can't change.
func (n *neighbourhood) deniedVM(t *testing.T) {
	n.keptOff(t, n.inside(t, "vm"), []string{far4 + ":80", "[" + far6 + "]:80"}, []string{laptop4 + ":80", "[" + peer6 + "]:80", farPrivate + ":80"})
}

// clockStep is how far the capsule's clock jumps; clockTolerance how far a microVM's
// may be from it after a minute.
const (
	clockStep      = 48 * time.Hour
	clockTolerance = 2 * time.Second
)

// steps the capsule's clock: the microVM's follows.
func (n *neighbourhood) steps(t *testing.T) {
	now := func(workload string) time.Time {
		nanos, err := strconv.ParseInt(strings.TrimSpace(n.must(t, "", "workload", "exec", workload, "--", "/payload", "date")), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Unix(0, nanos)
	}
	ahead := clockStep
	n.clock.ahead.Store(&ahead)
	nettest.Eventually(t, 2*time.Minute, func() error { // a server is asked again after 64 s at most
		if at := now("a"); time.Until(at) < clockStep/2 {
			return fmt.Errorf("the capsule's clock says %s", at)
		}
		return nil
	})
	nettest.Eventually(t, time.Minute, func() error {
		before, inside, after := now("a"), now("vm"), now("a")
		if inside.Before(before.Add(-clockTolerance)) || inside.After(after.Add(clockTolerance)) {
			return fmt.Errorf("the microVM's clock says %s, the capsule's %s to %s", inside, before, after)
		}
		return nil
	})
}

// withoutIPv6 starts the same capsule with IPv6 off: all starts, and has IPv4.
func (n *neighbourhood) withoutIPv6(t *testing.T) {
	n.names[laptop4].mute.Store(false)
	n.apply(t, workload("Container", "a", ports("8600:80", "8600:80/udp", "[::1]:8601:80", "["+n.v6+"]:8602:80")), hostWorkload())
	cut(t, n.machine)
	n.machine.Args = append(n.machine.Args, "-smbios", "type=11,value=io.systemd.stub.kernel-cmdline-extra=ipv6.disable=1")
	start(t, n.machine)
	n.answers(t, false)
	peer, to := n.peerHost(), n.at(8600)[0]
	nettest.Eventually(t, 2*time.Minute, func() error {
		text, err := peer.http(to, closed)
		if err != nil || !strings.HasPrefix(text, "a from ") {
			return fmt.Errorf("%q, %w", text, err)
		}
		return nil
	})
	peer.reachesUDP(t, to, "a")
	if got := n.state(t, "a").Status.Addresses; len(got) != 1 || !netip.MustParseAddr(got[0]).Is4() {
		t.Errorf("addresses %v", got)
	}
	n.asks(t, "a", "udp", "a.", "AAAA", "NOERROR")
	n.asks(t, "a", "udp", "a.", "A", "NOERROR "+n.state(t, "a").Status.Addresses[0])
	n.inside(t, "a").reaches(t, to, "a")
	n.inside(t, "agent").reaches(t, "127.0.0.1:8600", "a")
	peer.unreachable(t, n.at(8600)[1], n.at(8602)[1])
	if info := n.must(t, "", "capsule", "info", "-o", "json"); strings.Contains(info, "2001:db8") {
		t.Errorf("it has IPv6 all the same: %s", info)
	}
}
