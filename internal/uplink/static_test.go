package uplink

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"capsule/internal/nettest"
)

// fixed is a configuration of our link.
func fixed(gateways []netip.Addr, list ...string) Config {
	one := LinkConfig{Link: ourLink, Addresses: prefixes(list...), Gateways: gateways}
	one.NoDHCP = slices.ContainsFunc(one.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() })
	return Config{Links: []LinkConfig{one}}
}

// defaults are the ways to everywhere by our link, in order.
func defaults(t *testing.T) (list []string) {
	t.Helper()
	link := (*nettest.NS)(nil).Link(t, ourLink)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{LinkIndex: link.Attrs().Index}, netlink.RT_FILTER_OIF)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Gw != nil {
				list = append(list, fmt.Sprintf("%s (%s)", r.Gw, r.Protocol))
			}
		}
	}
	return list
}

func needsIPv6(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		t.Skip("SKIPPED: this kernel has no IPv6")
	}
}

// takes waits until the links have what a configuration says, and nothing else.
func (d *daemon) takes(t *testing.T, number uint64, want ...string) State {
	t.Helper()
	nettest.Eventually(t, soon, func() error {
		s := d.last()
		var got []string
		for _, a := range s.Addresses {
			got = append(got, a.String())
		}
		slices.Sort(got)
		slices.Sort(want)
		if s.Number != number || !slices.Equal(got, want) {
			return fmt.Errorf("%v of configuration %d, want %v of %d; conflicts %q, problems %q", got, s.Number, want, number, s.Conflicts, s.Problems)
		}
		return nil
	})
	return d.last()
}

// From DHCP to addresses of one's own and back, without a moment without any; the
// lease is taken up again where it was left.
func TestStatic(t *testing.T) {
	needsIPv6(t)
	l := newLAN(t)
	l.start(t)
	d := run(t, t.TempDir())
	d.has(t, soon, "192.168.77.50/24")
	before := d.count()
	l.knows(t, "192.168.77.5", net.HardwareAddr{2, 0, 0, 0, 0, 9}) // of a machine that had it

	c := fixed(addresses("192.168.77.1", "fe80::1"), "192.168.77.5/24", "10.77.0.5/16", "fd77::5/64")
	c.DNS, c.Domain = addresses("192.168.77.2"), "attic.example"
	number := d.settings.Set(c)
	s := d.takes(t, number, "192.168.77.5/24", "10.77.0.5/16", "fd77::5/64")
	if !slices.Equal(s.DNS, c.DNS) || s.Domain != c.Domain || len(s.Conflicts)+len(s.Problems) > 0 || s.Message != "" {
		t.Errorf("state %+v", s)
	}
	l.learns(t, "192.168.77.5", (*nettest.NS)(nil).Link(t, ourLink).Attrs().HardwareAddr)
	if got, want := strings.Join(defaults(t), ", "), "192.168.77.1 (static), fe80::1 (static)"; got != want {
		t.Errorf("default routes %s, want %s", got, want)
	}
	for _, s := range d.since(before) {
		if len(s.Addresses) == 0 {
			t.Error("there was a moment without an address")
		}
	}

	asked := l.Count()
	number = d.settings.Set(Config{})
	d.takes(t, number, "192.168.77.50/24")
	d.resolves(t, "192.168.77.1")
	if got, want := strings.Join(defaults(t), ", "), "192.168.77.1 (dhcp)"; got != want {
		t.Errorf("default routes %s, want %s", got, want)
	}
	if len(l.Requests(asked, 1)) > 0 { // a discover
		t.Error("the lease was forgotten")
	}
}

// knows makes the neighbour think so of an address.
func (l *lan) knows(t *testing.T, address string, hardware net.HardwareAddr) {
	t.Helper()
	err := l.ns.Handle.NeighSet(&netlink.Neigh{LinkIndex: l.ns.Link(t, lanLink).Attrs().Index, IP: net.ParseIP(address), HardwareAddr: hardware, State: netlink.NUD_REACHABLE})
	if err != nil {
		t.Fatal(err)
	}
}

func (l *lan) learns(t *testing.T, address string, hardware net.HardwareAddr) {
	t.Helper()
	nettest.Eventually(t, soon, func() error {
		all, err := l.ns.Handle.NeighList(l.ns.Link(t, lanLink).Attrs().Index, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, n := range all {
			if n.IP.String() == address && slices.Equal(n.HardwareAddr, hardware) {
				return nil
			}
		}
		return fmt.Errorf("the neighbour knows %v, want %s at %s", all, address, hardware)
	})
}

// The address that DHCP gave becomes one for good, and outlives its lease.
func TestStaticAsLeased(t *testing.T) {
	l := newLAN(t)
	l.Set(func(g *nettest.Grant) { g.Lease = leaseMin })
	l.start(t)
	d := run(t, t.TempDir())
	d.has(t, soon, "192.168.77.50/24")
	d.takes(t, d.settings.Set(fixed(nil, "192.168.77.50/24")), "192.168.77.50/24")
	link := (*nettest.NS)(nil).Link(t, ourLink)
	have, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(have) != 1 || have[0].Flags&unix.IFA_F_PERMANENT == 0 {
		t.Errorf("addresses %v, %v", have, err)
	}
	if got := defaults(t); len(got) > 0 {
		t.Errorf("default routes %v", got)
	}
}

// What is declared holds from the start, and without a DHCP server; a daemon that dies
// leaves it, and the next one doesn't ask whose it is.
func TestStaticFromTheStart(t *testing.T) {
	newLAN(t)
	c := fixed(addresses("192.168.77.1"), "192.168.77.5/24")
	d := runWith(t, t.TempDir(), c)
	d.takes(t, 1, "192.168.77.5/24")
	d.stop(t)
	began := time.Now()
	d = runWith(t, t.TempDir(), c)
	d.takes(t, 1, "192.168.77.5/24")
	if took := time.Since(began); took > probes*probeEvery {
		t.Errorf("adopted after %s", took)
	}
	// Another one is declared while no daemon runs.
	d.stop(t)
	d = runWith(t, t.TempDir(), fixed(nil, "192.168.77.6/24"))
	d.takes(t, 1, "192.168.77.6/24")
	if got := defaults(t); len(got) > 0 {
		t.Errorf("default routes %v", got)
	}
}

// Pulled and plugged: the kernel drops routes and IPv6 with the link.
func TestStaticCable(t *testing.T) {
	needsIPv6(t)
	l := newLAN(t)
	l.ns.Down(t, lanLink)
	d := runWith(t, t.TempDir(), fixed(addresses("192.168.77.1"), "192.168.77.5/24", "fd77::5/64"))
	d.says(t, soon, "no carrier")
	l.ns.Up(t, lanLink)
	d.takes(t, 1, "192.168.77.5/24", "fd77::5/64")
	here := (*nettest.NS)(nil)
	here.Down(t, ourLink)
	nettest.Eventually(t, soon, func() error {
		d.takes(t, 1, "192.168.77.5/24", "fd77::5/64")
		if got := strings.Join(defaults(t), ", "); got != "192.168.77.1 (static)" {
			return fmt.Errorf("default routes %s", got)
		}
		return nil
	})
}

// An address that somebody has is not taken, and said whose it is; what there was
// stays. It is taken once it is free.
func TestConflict(t *testing.T) {
	needsIPv6(t)
	l := newLAN(t)
	l.ns.Addr(t, lanLink, "192.168.77.5/24", "fd77::5/64")
	mac := l.ns.Link(t, lanLink).Attrs().HardwareAddr
	d := runWith(t, t.TempDir(), fixed(nil, "192.168.77.9/24"))
	d.takes(t, 1, "192.168.77.9/24")
	ours := func(l netlink.Link) bool { return l.Attrs().Name == ourLink }

	c := fixed(nil, "192.168.77.5/24", "192.168.77.6/24")
	if _, err := look(t.Context(), c, ours); err == nil || !strings.Contains(err.Error(), "192.168.77.5") || !strings.Contains(err.Error(), mac.String()) ||
		strings.Contains(err.Error(), "192.168.77.6") {
		t.Errorf("looked at before: %v", err)
	}
	if warnings, err := look(t.Context(), fixed(nil, "192.168.77.9/24", "192.168.77.6/24"), ours); err != nil || warnings != nil {
		t.Errorf("our own and a free one: %q, %v", warnings, err)
	}
	number := d.settings.Set(c)
	s := d.takes(t, number, "192.168.77.6/24", "192.168.77.9/24")
	want := fmt.Sprintf("address 192.168.77.5 of link %q is taken by another machine, the one with hardware address %s", ourLink, mac)
	if !slices.Equal(s.Conflicts, []string{want}) || s.Message != "" {
		t.Errorf("conflicts %q, message %q", s.Conflicts, s.Message)
	}

	number = d.settings.Set(fixed(nil, "fd77::5/64", "fd77::6/64"))
	s = d.takes(t, number, "192.168.77.6/24", "192.168.77.9/24", "fd77::6/64")
	if len(s.Conflicts) != 1 || !strings.Contains(s.Conflicts[0], "fd77::5") {
		t.Errorf("conflicts %q", s.Conflicts)
	}

	if err := l.ns.Handle.AddrDel(l.ns.Link(t, lanLink), &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("fd77::5/64"))}); err != nil {
		t.Fatal(err)
	}
	s = d.takes(t, number, "fd77::5/64", "fd77::6/64")
	if len(s.Conflicts) > 0 {
		t.Errorf("conflicts %q", s.Conflicts)
	}
}

// A link that is not there: others go on by DHCP, and it is said; what is declared
// holds once it is there.
func TestLinkMissing(t *testing.T) {
	l := newLAN(t)
	l.start(t)
	c := fixed(nil, "192.168.78.5/24")
	c.Links[0].Link = "up1"
	d := runWith(t, t.TempDir(), c)
	d.has(t, soon, "192.168.77.50/24")
	nettest.Eventually(t, soon, func() error {
		if s := d.last(); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], `link "up1" is not there`) || !strings.Contains(s.Problems[0], ourLink) {
			return fmt.Errorf("problems %q", s.Problems)
		}
		return nil
	})
	other := nettest.New(t)
	nettest.Cable(t, "up1", other, "lan1")
	d.has(t, soon, "192.168.77.50/24", "192.168.78.5/24")
	d.takes(t, 1, "192.168.77.50/24", "192.168.78.5/24")
	// An address is there before the link is told to have a carrier.
	nettest.Eventually(t, soon, func() error {
		if s := d.last(); len(s.Problems) > 0 {
			return fmt.Errorf("problems %q", s.Problems)
		}
		return nil
	})
}

// Routers are listened to beside what is declared, not where they are not to be, and
// again at once when they are: they are asked.
func TestAutoconf(t *testing.T) {
	needsIPv6(t)
	l := newLAN(t)
	l.ns.Addr(t, lanLink, "fe80::1/64")
	c := fixed(nil, "fd77::5/64")
	c.Links[0].NoDHCP = true
	d := runWith(t, t.TempDir(), c)
	ra := nettest.Advertisement{Router: netip.MustParseAddr("fe80::1"), Prefix: netip.MustParseAddr("2001:db8:77::"), DNS: netip.MustParseAddr("2001:db8:77::53")}
	both := func() error {
		if err := ra.Send(l.ns, lanLink); err != nil {
			return err
		}
		if s := d.last(); len(s.Addresses) != 2 || len(s.DNS) != 1 || len(defaults(t)) != 1 {
			return fmt.Errorf("state %+v, default routes %v", s, defaults(t))
		}
		return nil
	}
	nettest.Eventually(t, 10*time.Second, both)

	deaf := fixed(nil, "fd77::5/64")
	deaf.Links[0].NoDHCP, deaf.Links[0].NoAdverts = true, true
	s := d.takes(t, d.settings.Set(deaf), "fd77::5/64")
	if err := ra.Send(l.ns, lanLink); err != nil {
		t.Fatal(err)
	}
	if got := defaults(t); len(got)+len(s.DNS) > 0 {
		t.Errorf("default routes %v, DNS %v", got, s.DNS)
	}

	asked := listenFor(t, l, 133)
	d.settings.Set(c)
	select {
	case <-asked:
	case <-time.After(10 * soon):
		t.Fatal("routers were not asked")
	}
	nettest.Eventually(t, 10*time.Second, both)
}

// listenFor closes once an ICMPv6 message of a type has come to the neighbour.
func listenFor(t *testing.T, l *lan, kind byte) <-chan struct{} {
	t.Helper()
	var conn net.PacketConn
	l.ns.Do(t, func() (err error) {
		conn, err = net.ListenPacket("ip6:ipv6-icmp", "::") //nolint:noctx // it opens at once
		return err
	})
	t.Cleanup(func() { conn.Close() })
	link := l.ns.Link(t, lanLink)
	raw, err := conn.(*net.IPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	group := &unix.IPv6Mreq{Multiaddr: [16]byte(net.IPv6linklocalallrouters), Interface: uint32(link.Attrs().Index)}
	var joined error
	if err := raw.Control(func(fd uintptr) {
		joined = unix.SetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, group)
	}); err != nil || joined != nil {
		t.Fatal(err, joined)
	}
	seen := make(chan struct{})
	go func() {
		b := make([]byte, 1500)
		for {
			n, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if n > 0 && b[0] == kind {
				close(seen)
				return
			}
		}
	}()
	return seen
}
