package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"capsule/internal/nettest"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// lan is a neighbour with a DHCP server.
type lan struct {
	ns *nettest.NS
	*nettest.DHCP
}

// soon is for what takes a second or less, but for a machine that stands still.
const soon = 10 * time.Second

const (
	lanAddress = "192.168.77.1/24"
	ourLink    = "up0"
	lanLink    = "lan0"
)

func newLAN(t *testing.T) *lan {
	l := &lan{ns: nettest.New(t), DHCP: nettest.NewDHCP(nettest.Grant{
		Server: netip.MustParsePrefix(lanAddress), Give: netip.MustParseAddr("192.168.77.50"), Lease: time.Hour, DNS: netip.MustParseAddr("192.168.77.1"),
		More: []dhcpv4.Modifier{
			dhcpv4.WithOption(dhcpv4.OptNTPServers(net.IPv4(192, 168, 77, 9))),
			dhcpv4.WithOption(dhcpv4.OptDomainName("home.example")),
			dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{5, 120}),
		},
	})}
	nettest.Cable(t, ourLink, l.ns, lanLink)
	l.ns.Addr(t, lanLink, lanAddress)
	return l
}

func (l *lan) start(t *testing.T) { l.Serve(t, l.ns, lanLink) }

// daemon is a running Run.
type daemon struct {
	mu     sync.Mutex
	states []State
	cancel context.CancelFunc
	done   chan error

	settings *Settings
}

func (d *daemon) stop(t *testing.T) {
	t.Helper()
	d.cancel()
	if err := <-d.done; err != nil {
		t.Fatal(err)
	}
	d.done <- nil
}

func (d *daemon) last() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.states) == 0 {
		return State{}
	}
	return d.states[len(d.states)-1]
}

// count of the states that there were, and those since one.
func (d *daemon) count() int { return len(d.since(0)) }

func (d *daemon) since(n int) []State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.states[n:])
}

func run(t *testing.T, dir string) *daemon { return runWith(t, dir, Config{}) }

func runWith(t *testing.T, dir string, c Config) *daemon {
	ctx, cancel := context.WithCancel(context.Background())
	d := &daemon{cancel: cancel, done: make(chan error, 1), settings: NewSettings(c)}
	opts := Options{
		Settings: d.settings,
		Hostname: func() string { return "capsule-a3f2" },
		RunDir:   dir,
		Select:   func(l netlink.Link) bool { return strings.HasPrefix(l.Attrs().Name, "up") },
		OnChange: func(s State) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.states = append(d.states, s)
		},
	}
	go func() { d.done <- Run(ctx, opts) }()
	t.Cleanup(func() { d.stop(t) })
	return d
}

// has waits for exactly these IPv4 addresses.
func (d *daemon) has(t *testing.T, limit time.Duration, want ...string) {
	t.Helper()
	nettest.Eventually(t, limit, func() error {
		got := []string{}
		s := d.last()
		var ofLinks []netip.Prefix
		for _, l := range s.Links {
			ofLinks = append(ofLinks, l.Addresses...)
		}
		if !slices.Equal(ofLinks, s.Addresses) {
			return fmt.Errorf("links %+v, addresses %v", s.Links, s.Addresses)
		}
		for _, p := range s.Addresses {
			if p.Addr().Is4() {
				got = append(got, p.String())
			}
		}
		if !slices.Equal(got, want) && len(got)+len(want) > 0 {
			return fmt.Errorf("addresses %v, want %v, message %q", got, want, s.Message)
		}
		return nil
	})
}

// resolves waits for exactly this DNS server: a link's address is seen first,
// what else its lease holds right after.
func (d *daemon) resolves(t *testing.T, want string) State {
	t.Helper()
	nettest.Eventually(t, soon, func() error {
		if s := d.last(); !slices.Equal(s.DNS, []netip.Addr{netip.MustParseAddr(want)}) {
			return fmt.Errorf("DNS %v, want %s", s.DNS, want)
		}
		return nil
	})
	return d.last()
}

func (d *daemon) says(t *testing.T, limit time.Duration, part string) {
	t.Helper()
	nettest.Eventually(t, limit, func() error {
		if m := d.last().Message; !strings.Contains(m, part) {
			return fmt.Errorf("message %q, want %q", m, part)
		}
		return nil
	})
}

func TestAddress(t *testing.T) {
	l := newLAN(t)
	l.start(t)
	d := run(t, t.TempDir())
	d.has(t, soon, "192.168.77.50/24")
	s := d.resolves(t, "192.168.77.1")
	if s.Domain != "home.example" || s.Message != "" ||
		!slices.Equal(s.NTP, []netip.Addr{netip.MustParseAddr("192.168.77.9")}) {
		t.Errorf("state %+v", s)
	}
	link := (*nettest.NS)(nil).Link(t, ourLink)
	if link.Attrs().MTU != 1400 {
		t.Errorf("MTU %d, want 1400", link.Attrs().MTU)
	}
	if got := gateway(t); got != "192.168.77.1" {
		t.Errorf("default route by %q", got)
	}
	for _, m := range l.Requests(0, dhcpv4.MessageTypeDiscover) {
		if m.HostName() != "capsule-a3f2" {
			t.Errorf("hostname %q", m.HostName())
		}
	}
}

// gateway of the default route.
func gateway(t *testing.T) string {
	t.Helper()
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: unix.RTPROT_DHCP}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, r := range routes {
		all = append(all, r.Gw.String())
	}
	return strings.Join(all, " ")
}

// The switch port forwards only later; the server comes only later (BOOT-01).
func TestServerLater(t *testing.T) {
	l := newLAN(t)
	d := run(t, t.TempDir())
	d.says(t, 20*time.Second, "no DHCP server answers")
	l.start(t)
	d.has(t, 15*time.Second, "192.168.77.50/24")
}

func TestCableLater(t *testing.T) {
	l := newLAN(t)
	l.ns.Down(t, lanLink)
	l.start(t)
	d := run(t, t.TempDir())
	d.says(t, soon, "no carrier")
	l.ns.Up(t, lanLink)
	d.has(t, soon, "192.168.77.50/24")

	// Pulled and plugged into the same network: the same address, asked for.
	before := l.Count()
	l.ns.Down(t, lanLink)
	l.ns.Up(t, lanLink)
	nettest.Eventually(t, soon, func() error {
		if len(l.Requests(before, dhcpv4.MessageTypeRequest)) == 0 {
			return errors.New("nothing asked")
		}
		return nil
	})
	d.has(t, soon, "192.168.77.50/24")

	// Into another network.
	l.ns.Down(t, lanLink)
	l.Set(func(g *nettest.Grant) { g.Give = netip.MustParseAddr("192.168.77.60") })
	l.ns.Up(t, lanLink)
	d.has(t, soon, "192.168.77.60/24")
}

func TestHotplug(t *testing.T) {
	nettest.Require(t)
	d := run(t, t.TempDir())
	d.says(t, soon, "no wired network link")
	l := newLAN(t)
	l.start(t)
	d.has(t, soon, "192.168.77.50/24")
	if err := netlink.LinkDel((*nettest.NS)(nil).Link(t, ourLink)); err != nil {
		t.Fatal(err)
	}
	d.has(t, soon)
	d.says(t, soon, "no wired network link")
}

// BOOT-02: the lease is renewed at T1, from our address to the server.
func TestRenew(t *testing.T) {
	l := newLAN(t)
	// A lease that holds when the machine stands still for a while.
	const renew = 5 * time.Second
	l.Set(func(g *nettest.Grant) { g.Lease, g.Renew = time.Minute, renew })
	l.start(t)
	start := time.Now() // before the lease, which the machine may be slow to show
	d := run(t, t.TempDir())
	d.has(t, soon, "192.168.77.50/24")
	renewal := l.awaitRenewal(t)
	if passed := time.Since(start); passed < renew {
		t.Errorf("renewed after %s, T1 is %s", passed, renew)
	}
	if renewal.ServerIdentifier() != nil || renewal.RequestedIPAddress() != nil {
		t.Errorf("renewal carries what it may not: %s", renewal.Summary())
	}

	// Another DNS server and another address at the next one.
	l.Set(func(g *nettest.Grant) {
		g.Give, g.DNS = netip.MustParseAddr("192.168.77.51"), netip.MustParseAddr("192.168.77.2")
	})
	d.has(t, soon, "192.168.77.51/24")
	d.resolves(t, "192.168.77.2")
	if got := gateway(t); got != "192.168.77.1" {
		t.Errorf("default route by %q", got)
	}
	// The new one was there before the old one went.
	states := d.since(0)
	for i, s := range states {
		if i > 0 && len(s.Addresses) == 0 && len(states[i-1].Addresses) > 0 {
			t.Errorf("no address in between: %+v", states)
		}
	}

	// Refused: away at once, then another one.
	l.Set(func(g *nettest.Grant) { g.NAK = true })
	d.says(t, soon, "refused")
	if len(d.last().Addresses) > 0 && d.last().Addresses[0].Addr().Is4() {
		t.Errorf("still has %v", d.last().Addresses)
	}
	l.Set(func(g *nettest.Grant) { g.NAK, g.Give, g.Lease = false, netip.MustParseAddr("192.168.77.52"), leaseMin })
	d.has(t, 15*time.Second, "192.168.77.52/24")

	// Nobody answers past expiry: away.
	l.Set(func(g *nettest.Grant) { g.Mute = true })
	d.has(t, 15*time.Second)
	l.Set(func(g *nettest.Grant) { g.Mute = false })
	d.has(t, 15*time.Second, "192.168.77.52/24")
}

// awaitRenewal waits for the first one.
func (l *lan) awaitRenewal(t *testing.T) *dhcpv4.DHCPv4 {
	t.Helper()
	var found *dhcpv4.DHCPv4
	nettest.Eventually(t, soon, func() error {
		for _, m := range l.Requests(0, dhcpv4.MessageTypeRequest) {
			if !m.ClientIPAddr.IsUnspecified() {
				found = m
				return nil
			}
		}
		return errors.New("no renewal seen")
	})
	return found
}

// A daemon that dies leaves the address, and the next one asks for the same.
func TestAdopt(t *testing.T) {
	l := newLAN(t)
	l.start(t)
	dir := t.TempDir()
	d := run(t, dir)
	d.has(t, soon, "192.168.77.50/24")
	d.stop(t)
	// Another one would be given to a stranger.
	l.Set(func(g *nettest.Grant) { g.Mute = true })
	before := l.Count()
	d = run(t, dir)
	d.has(t, soon, "192.168.77.50/24")
	d.resolves(t, "192.168.77.1")
	nettest.Eventually(t, soon, func() error {
		for _, m := range l.Requests(before, dhcpv4.MessageTypeRequest) {
			if m.RequestedIPAddress().Equal(net.IPv4(192, 168, 77, 50)) {
				return nil
			}
		}
		return errors.New("the same address was not asked for")
	})
	l.Set(func(g *nettest.Grant) { g.Mute = false })
	d.has(t, soon, "192.168.77.50/24")
}
