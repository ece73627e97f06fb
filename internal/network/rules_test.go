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
	for _, test := range []struct {
		file, golden string
		in           desired
	}{
		{"empty", emptyGolden, desired{Bridge: bridgeName, Net: DefaultSubnets, IPv6: true}},
		{"ipv4", ipv4Golden, desired{Bridge: bridgeName, Net: DefaultSubnets, Ports: ports}},
		{"ports", portsGolden, desired{Bridge: bridgeName, Net: DefaultSubnets, IPv6: true, Ports: ports}},
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
	}}
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
	} {
		t.Run(test.name, func(t *testing.T) {
			f := flow{test.protocol, netip.MustParseAddrPort(test.to), netip.MustParseAddrPort(test.answers)}
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
		if a, err := n.allocate(name); err != nil || !DefaultSubnets.valid(a) {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
}
