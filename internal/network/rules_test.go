package network

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"testing"

	_ "embed"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite golden files")

// Embedded, so that the test binary runs without other files.
var (
	//go:embed testdata/empty.nft
	emptyGolden string
	//go:embed testdata/ipv4.nft
	ipv4Golden string
	//go:embed testdata/ports.nft
	portsGolden string
	//go:embed testdata/sources.nft
	sourcesGolden string
	//go:embed testdata/overlap.nft
	overlapGolden string
)

func TestRuleset(t *testing.T) {
	to := func(n uint16) []netip.Addr { return DefaultSubnets.host(n).list(true) }
	ports := []forward{
		{Published{Workload: "web", Port: 8080, Target: 80, Protocol: "tcp"}, to(2)},
		{Published{Workload: "dns", Port: 53, Target: 5353, Protocol: "udp", Address: netip.MustParseAddr("192.168.1.5")}, to(3)},
		{Published{Workload: "dns", Port: 53, Target: 5353, Protocol: "udp", Address: netip.MustParseAddr("2001:db8::5")}, to(3)},
		{Published{Workload: "four", Port: 1, Target: 1, Protocol: "tcp", Address: netip.IPv4Unspecified()}, to(4)},
		{Published{Workload: "six", Port: 1, Target: 1, Protocol: "tcp", Address: netip.IPv6Unspecified()}, to(5)},
		{Published: Published{Workload: "agent", Port: 9100, Protocol: "tcp", Host: true}},
		{Published: Published{Workload: "agent", Port: 9101, Protocol: "udp", Host: true, Address: netip.MustParseAddr("192.168.1.5")}},
	}
	prefixes := func(list ...string) (all []netip.Prefix) {
		for _, p := range list {
			all = append(all, netip.MustParsePrefix(p))
		}
		return all
	}
	sources := []forward{
		{Published{Workload: "nas", Port: 445, Target: 445, Protocol: "tcp", From: Source{LAN: true}}, to(2)},
		{Published{Workload: "admin", Port: 8443, Target: 443, Protocol: "tcp", From: Source{Prefix: prefixes("192.168.1.7/32")[0]}}, to(3)},
		{Published{Workload: "six", Port: 8444, Target: 443, Protocol: "tcp", From: Source{Prefix: prefixes("2001:db8::/32")[0]}}, to(3)},
		{Published{Workload: "rtp", Port: 8000, End: 8100, Target: 8000, Protocol: "udp"}, to(4)},
		{Published{Workload: "rtp", Port: 9000, End: 9002, Target: 1000, Protocol: "udp"}, to(4)},
		{Published{Workload: "late", Port: 8090, End: 8110, Target: 8090, Protocol: "udp"}, to(5)}, // its holder is about to go
		{Published{Workload: "top", Port: 65000, End: 65535, Target: 65000, Protocol: "udp"}, to(6)},
		{Published: Published{Workload: "agent", Port: 9100, Protocol: "tcp", Host: true, From: Source{LAN: true}}},
		{Published: Published{Workload: "agent", Port: 9200, End: 9300, Protocol: "tcp", Host: true}},
	}
	for _, test := range []struct {
		file, golden string
		in           desired
	}{
		{"empty", emptyGolden, desired{Bridge: bridgeName, Net: DefaultSubnets, IPv6: true}},
		{"ipv4", ipv4Golden, desired{Bridge: bridgeName, Net: DefaultSubnets, Ports: ports}},
		{"ports", portsGolden, desired{Bridge: bridgeName, Net: DefaultSubnets, IPv6: true, Ports: ports}},
		{"sources", sourcesGolden, desired{Bridge: bridgeName, Net: DefaultSubnets, IPv6: true, Ports: sources,
			LAN:    prefixes("192.168.1.5/24", "192.168.0.0/16", "203.0.113.9/28", "2001:db8:1::5/64"),
			Denied: []addresses{DefaultSubnets.host(2), DefaultSubnets.host(300)}}},
		{"overlap", overlapGolden, desired{Bridge: bridgeName, Net: DefaultSubnets, IPv6: true, LAN: prefixes("172.30.5.2/24", "fd7a:9c1e:30::5/64")}},
	} {
		t.Run(test.file, func(t *testing.T) {
			got := render(ruleset(test.in))
			if *update {
				check(t, os.WriteFile("testdata/"+test.file+".nft", []byte(got), 0o644))
				return
			}
			if diff := cmp.Diff(test.golden, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestConflicts(t *testing.T) {
	a := netip.MustParseAddr
	p := func(workload string, port uint16, protocol, address string) Published {
		pub := Published{Workload: workload, Port: port, Target: 80, Protocol: protocol}
		if address != "" {
			pub.Address = a(address)
		}
		return pub
	}
	ranged := func(p Published, end uint16) Published { p.End = end; return p }
	from := func(p Published, source string) Published { p.From, _ = ParseSource(source); return p }
	host := p("agent", 53, "udp", "")
	host.Host = true
	hostOne := host
	hostOne.Address = a("192.168.1.5")
	for _, test := range []struct {
		name  string
		ports []Published
		want  string
	}{
		{"other port", []Published{p("a", 8080, "tcp", ""), p("b", 8081, "tcp", "")}, ""},
		{"same", []Published{p("a", 8080, "tcp", ""), p("b", 8080, "tcp", "")},
			`publish port of workload "b": port 8080/tcp is already published by workload "a"`},
		{"other protocol", []Published{p("a", 8080, "tcp", ""), p("b", 8080, "udp", "")}, ""},
		{"two addresses", []Published{p("a", 8080, "tcp", "192.168.1.5"), p("b", 8080, "tcp", "192.168.1.6")}, ""},
		{"same address", []Published{p("a", 8080, "tcp", "192.168.1.5"), p("b", 8080, "tcp", "::ffff:192.168.1.5")},
			`publish port of workload "b": port 192.168.1.5:8080/tcp is already published by workload "a"`},
		{"all and one", []Published{p("a", 8080, "tcp", ""), p("b", 8080, "tcp", "192.168.1.5")},
			`publish port of workload "b": port 8080/tcp is already published by workload "a"`},
		{"one and all of its family", []Published{p("a", 8080, "tcp", "192.168.1.5"), p("b", 8080, "tcp", "0.0.0.0")},
			`publish port of workload "b": port 192.168.1.5:8080/tcp is already published by workload "a"`},
		{"all of each family", []Published{p("a", 8080, "tcp", "::"), p("b", 8080, "tcp", "0.0.0.0")}, ""},
		{"all and all of a family", []Published{p("a", 8080, "tcp", "::"), p("b", 8080, "tcp", "")},
			`publish port of workload "b": port [::]:8080/tcp is already published by workload "a"`},
		{"twice in one workload", []Published{p("a", 8080, "tcp", ""), p("a", 8080, "tcp", "")},
			`publish port of workload "a": port 8080/tcp is already published by workload "a"`},
		{"API", []Published{p("a", 50000, "tcp", "")}, `publish port of workload "a": port 50000/tcp is held by the capsule's own API`},
		{"API on one address", []Published{p("a", 50000, "tcp", "192.168.1.5")},
			`publish port of workload "a": port 192.168.1.5:50000/tcp is held by the capsule's own API`},
		{"API's number by UDP", []Published{p("a", 50000, "udp", "")}, ""},
		{"DNS from the bridge", []Published{p("a", 53, "udp", "")}, ""},
		{"DNS on the host", []Published{host}, `publish port of workload "agent": port 53/udp is held by the capsule's own DNS`},
		{"DNS on one address of the host", []Published{hostOne}, ""},
		{"ranges side by side", []Published{ranged(p("a", 8000, "udp", ""), 8100), ranged(p("b", 8101, "udp", ""), 8200)}, ""},
		{"ranges that meet", []Published{ranged(p("a", 8000, "udp", ""), 8100), ranged(p("b", 8100, "udp", ""), 8200)},
			`publish port of workload "b": port 8000-8100/udp is already published by workload "a"`},
		{"a port of a range", []Published{ranged(p("a", 8000, "udp", "192.168.1.5"), 8100), p("b", 8050, "udp", "")},
			`publish port of workload "b": port 192.168.1.5:8000-8100/udp is already published by workload "a"`},
		{"a range around a port", []Published{p("a", 8050, "udp", "::1"), ranged(p("b", 1, "udp", ""), 65535)},
			`publish port of workload "b": port [::1]:8050/udp is already published by workload "a"`},
		{"a range by the other protocol", []Published{p("a", 8050, "tcp", ""), ranged(p("b", 1, "udp", ""), 65535)}, ""},
		{"a range around the API", []Published{ranged(p("a", 49000, "tcp", ""), 51000)},
			`publish port of workload "a": port 50000/tcp is held by the capsule's own API`},
		{"others may come from elsewhere", []Published{from(p("a", 8080, "tcp", ""), "lan"), from(p("b", 8080, "tcp", ""), "192.0.2.1")},
			`publish port of workload "b": port 8080/tcp is already published by workload "a"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := Conflicts(test.ports)
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (!errdefs.IsAlreadyExists(err) || err.Error() != fmt.Sprintf("%s: %v", test.want, errdefs.ErrAlreadyExists)):
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestStale(t *testing.T) {
	to := func(n uint16) []netip.Addr { return DefaultSubnets.host(n).list(true) }
	d := desired{Bridge: bridgeName, Net: DefaultSubnets, IPv6: true, Ports: []forward{
		{Published{Port: 5353, Target: 53, Protocol: "udp"}, to(2)},
		{Published{Port: 8080, Target: 80, Protocol: "tcp", Address: netip.MustParseAddr("192.168.1.5")}, to(3)},
		{Published: Published{Port: 9100, Protocol: "tcp", Host: true}},
		{Published{Port: 53, Target: 53, Protocol: "udp"}, to(4)},
		{Published{Port: 7000, End: 7100, Target: 1000, Protocol: "udp"}, to(5)},
		{Published{Port: 8443, Target: 443, Protocol: "tcp", From: Source{LAN: true}}, to(6)},
		{Published: Published{Port: 9200, Protocol: "tcp", Host: true, From: Source{LAN: true}}},
	}, LAN: []netip.Prefix{netip.MustParsePrefix("192.168.2.0/24")}}
	local := map[netip.Addr]bool{}
	for _, a := range []string{"192.168.1.5", "192.168.1.6", "127.0.0.1", "172.30.0.1"} {
		local[netip.MustParseAddr(a)] = true
	}
	for _, test := range []struct {
		name, protocol, to, answers string
		want                        bool
	}{
		{"right", "udp", "192.168.1.5:5353", "172.30.0.2:53", false},
		{"right by IPv6", "udp", "[2001:db8::5]:5353", "[fd7a:9c1e:30::2]:53", false},
		{"old workload", "udp", "192.168.1.5:5353", "172.30.0.9:53", true},
		{"old workload by IPv6", "udp", "[2001:db8::5]:5353", "[fd7a:9c1e:30::9]:53", true},
		{"old port of the workload", "udp", "192.168.1.5:5353", "172.30.0.2:54", true},
		{"other protocol", "tcp", "192.168.1.5:5353", "172.30.0.2:53", true},
		{"not published any more", "tcp", "192.168.1.5:8081", "172.30.0.3:80", true},
		{"not published on this address", "tcp", "192.168.1.6:8080", "172.30.0.3:80", true},
		{"to the box before it was published", "udp", "192.168.1.6:5353", "192.168.1.6:5353", true},
		{"to the same port elsewhere", "udp", "192.0.2.1:5353", "192.0.2.1:5353", false},
		{"between workloads", "udp", "172.30.0.7:5353", "172.30.0.7:5353", false},
		{"to a host workload", "tcp", "192.168.1.5:9100", "192.168.1.5:9100", false},
		{"to what is a host workload now", "tcp", "192.168.1.5:9100", "172.30.0.2:9100", true},
		{"to the API", "tcp", "192.168.1.5:50000", "192.168.1.5:50000", false},
		{"out", "tcp", "192.0.2.1:443", "192.0.2.1:443", false},
		{"translated by somebody else", "tcp", "192.168.1.5:22", "10.0.0.1:22", false},
		{"DNS of the capsule", "udp", "172.30.0.1:53", "172.30.0.1:53", false},
		{"within a range", "udp", "192.168.1.5:7050", "172.30.0.5:1050", false},
		{"to another port of a range", "udp", "192.168.1.5:7050", "172.30.0.5:1051", true},
		{"from who may not any more", "tcp", "192.168.1.5:8443", "172.30.0.6:443", true},
		{"the same to the host", "tcp", "192.168.1.5:9200", "192.168.1.5:9200", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := flow{test.protocol, netip.MustParseAddr("192.168.1.77"), netip.MustParseAddrPort(test.to), netip.MustParseAddrPort(test.answers)}
			if got := stale(f, d, local); got != test.want {
				t.Errorf("stale %v, want %v", got, test.want)
			}
		})
	}
}

func TestPick(t *testing.T) {
	for _, test := range []struct {
		used []uint16
		last uint16
		want uint16 // 0: none
	}{
		{nil, 0, 2},
		{[]uint16{2}, 2, 3},
		{[]uint16{3}, 3, 4},
		{[]uint16{2, 3}, 6, 2 + 2},
		{[]uint16{2, 4, 5, 6}, 4, 3},
		{[]uint16{2, 3, 4, 5, 6}, 4, 0},
		{nil, 60000, 2},
	} {
		used := map[uint16]bool{}
		for _, n := range test.used {
			used[n] = true
		}
		got, err := pick(used, test.last, 6)
		if got != test.want || (test.want == 0) != errdefs.IsResourceExhausted(err) {
			t.Errorf("pick(%v, %d) = %d, %v; want %d", test.used, test.last, got, err, test.want)
		}
	}
}

// Records of other networks, or damaged ones, are as none.
func TestAllocateForeign(t *testing.T) {
	kv := &memoryKV{m: map[string][]byte{
		"old":     []byte(`{"ipv4":"10.9.0.2","ipv6":"fd00::2"}`),
		"damaged": []byte(`{`),
		"good":    []byte(`{"ipv4":"172.30.1.4","ipv6":"fd7a:9c1e:30::104"}`),
	}}
	n := &Network{opts: Options{Store: kv, Subnets: DefaultSubnets}}
	for name, want := range map[string]string{"good": "172.30.1.4"} {
		if a, err := n.allocate(name); err != nil || a.IPv4.String() != want {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
	for _, name := range []string{"old", "damaged"} {
		if a, err := n.allocate(name); err != nil || DefaultSubnets.host(DefaultSubnets.number(a)) != a {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
}

func TestParseSource(t *testing.T) {
	for in, want := range map[string]string{
		"": "{false invalid Prefix}", "any": "{false invalid Prefix}", "lan": "{true invalid Prefix}", "192.0.2.1": "{false 192.0.2.1/32}",
		"192.0.2.0/24": "{false 192.0.2.0/24}", "2001:db8::1": "{false 2001:db8::1/128}", "::/0": "{false ::/0}",
		"LAN": "", "fe80::1%eth0": "", "192.0.2.0/33": "", "all": "",
	} {
		got, err := ParseSource(in)
		if err != nil != (want == "") || err == nil && fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v; want %s", in, got, err, want)
		}
	}
}

// Whatever networks the uplinks have, the kernel takes them as a set.
func TestDisjoint(t *testing.T) {
	in := []string{"192.168.1.5/24", "192.168.0.0/16", "10.0.0.0/8", "10.1.0.0/16", "192.168.1.0/24", "2001:db8::/64", "fe80::1/64", "fe80::/10", "0.0.0.0/1"}
	var nets []netip.Prefix
	for _, p := range in {
		nets = append(nets, netip.MustParsePrefix(p))
	}
	if got, want := fmt.Sprint(disjoint(nets)), "[0.0.0.0/1 192.168.0.0/16 2001:db8::/64 fe80::/10]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
