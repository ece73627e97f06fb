package mdns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"

	"capsule/internal/nettest"
	"capsule/internal/uplink"
)

// The test's own machine is the laptop; each capsule is another one.

// box is a capsule on the network.
type box struct {
	ns        *nettest.NS
	responder *Responder
	service   Service
	// stop ends the responder, and waits for its goodbye.
	stop func()
}

func newBox(t *testing.T, name, id string) *box {
	t.Helper()
	b := &box{ns: nettest.New(t), responder: NewResponder(slog.New(slog.DiscardHandler)), service: testService(name, id)}
	var socks *sockets
	b.ns.Do(t, func() (err error) {
		socks, err = openSockets(t.Context())
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.responder.serve(ctx, socks) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(b.stop)
	b.responder.Say(b.service)
	return b
}

// link is one of the capsule's, as it is said to the responder.
func (b *box) link(t *testing.T, name string, addresses ...string) Link {
	t.Helper()
	b.ns.Addr(t, name, addresses...)
	l := testLink(addresses...)
	l.Name, l.Index = name, b.ns.Link(t, name).Attrs().Index
	return l
}

// lan is a switch that the laptop is on.
func lan(t *testing.T, name, address string) {
	t.Helper()
	nettest.Require(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	noSnooping := false
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &noSnooping}); err != nil {
		t.Fatal(err)
	}
	here := (*nettest.NS)(nil)
	t.Cleanup(func() { _ = netlink.LinkDel(here.Link(t, name)) })
	here.Up(t, name)
	if address != "" {
		here.Addr(t, name, address)
	}
}

// plug connects a capsule with a switch.
func (b *box) plug(t *testing.T, bridge, port, there string) {
	t.Helper()
	nettest.Cable(t, port, b.ns, there)
	here := (*nettest.NS)(nil)
	if err := netlink.LinkSetMaster(here.Link(t, port), here.Link(t, bridge)); err != nil {
		t.Fatal(err)
	}
}

// finds looks for capsules until what is found is as wanted.
func finds(t *testing.T, want func([]Found) error) {
	t.Helper()
	nettest.Eventually(t, 10*time.Second, func() error {
		all := map[identity]Found{}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := Discover(ctx, func(f Found) { all[f.identity()] = f }); err != nil {
			return err
		}
		var list []Found
		for _, f := range all {
			list = append(list, f)
		}
		slices.SortFunc(list, func(a, b Found) int { return slices.Compare([]byte(a.ID), []byte(b.ID)) })
		return want(list)
	})
}

// hosts is what is wanted of a search: these, in the order of their ids.
func hosts(want ...string) func([]Found) error {
	return func(list []Found) error {
		var got []string
		for _, f := range list {
			got = append(got, f.Host())
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("found at %q, want %q", got, want)
		}
		return nil
	}
}

func TestTwoCapsules(t *testing.T) {
	lan(t, "lan0", "192.168.70.1/24")
	a, b := newBox(t, "capsule-a3f2", "a3f2"), newBox(t, "capsule-b", "b")
	a.plug(t, "lan0", "porta", "eth0")
	b.plug(t, "lan0", "portb", "eth0")
	a.responder.On([]Link{a.link(t, "eth0", "192.168.70.20/24")})
	b.responder.On([]Link{b.link(t, "eth0", "192.168.70.21/24")})
	finds(t, func(list []Found) error {
		if err := hosts("192.168.70.20:50000", "192.168.70.21:50000")(list); err != nil {
			return err
		}
		if list[0].Service != a.service || list[1].Service != b.service {
			return fmt.Errorf("found %+v", list)
		}
		return nil
	})

	t.Run("by name", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		f, err := Find(ctx, "Capsule-B")
		if err != nil || f.Host() != "192.168.70.21:50000" {
			t.Errorf("%v, %v", f.Host(), err)
		}
		short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := Find(short, "capsule-c"); !errdefs.IsNotFound(err) {
			t.Errorf("one that is not there: %v", err)
		}
	})
	t.Run("claimed meanwhile", func(t *testing.T) {
		now := a.service
		now.State = Claimed
		a.responder.Say(now)
		finds(t, func(list []Found) error {
			if len(list) != 2 || list[0].State != Claimed || list[1].State != Unclaimed {
				return fmt.Errorf("found %+v", list)
			}
			return nil
		})
	})
	t.Run("namesakes", func(t *testing.T) {
		same := b.service
		same.Name = "capsule-a3f2"
		b.responder.Say(same)
		finds(t, func(list []Found) error {
			if len(list) != 2 || list[0].Name != list[1].Name {
				return fmt.Errorf("found %+v", list)
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if f, err := Find(ctx, "capsule-a3f2"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%v, %v", f, err)
		}
		if f, err := Find(ctx, same.ID); err != nil || f.Host() != "192.168.70.21:50000" {
			t.Errorf("by id: %v, %v", f, err)
		}
	})
	t.Run("one stops", func(t *testing.T) {
		b.stop()
		finds(t, hosts("192.168.70.20:50000"))
	})
}

// A capsule on two networks is found on each, by the address that it has there.
func TestTwoLinks(t *testing.T) {
	lan(t, "lan0", "192.168.70.1/24")
	a := newBox(t, "capsule-a3f2", "a3f2")
	a.plug(t, "lan0", "porta", "eth0")
	nettest.Cable(t, "direct", a.ns, "eth1")
	(*nettest.NS)(nil).Addr(t, "direct", "192.168.71.1/24")
	both := []Link{a.link(t, "eth0", "192.168.70.20/24"), a.link(t, "eth1", "192.168.71.20/24")}
	a.responder.On(both)
	finds(t, func(list []Found) error {
		want := []netip.Addr{netip.MustParseAddr("192.168.70.20"), netip.MustParseAddr("192.168.71.20")}
		for _, addr := range want {
			if len(list) != 1 || !slices.Contains(list[0].Addresses, addr) {
				return fmt.Errorf("found %+v, want %v", list, want)
			}
		}
		return nil
	})
	// A link that is no uplink is answered on no more than it was before.
	a.responder.On(both[1:])
	finds(t, hosts("192.168.71.20:50000"))
	a.responder.On(nil)
	finds(t, hosts())
}

// Without any address but those of the link itself a capsule is found all the same.
func TestNoAddress(t *testing.T) {
	lan(t, "lan0", "192.168.70.1/24")
	a := newBox(t, "capsule-a3f2", "a3f2")
	a.plug(t, "lan0", "porta", "eth0")
	a.responder.On([]Link{a.link(t, "eth0")})
	finds(t, func(list []Found) error {
		if len(list) != 1 || !list[0].Addresses[0].IsLinkLocalUnicast() || list[0].Addresses[0].Zone() != "lan0" {
			return fmt.Errorf("found %+v", list)
		}
		return nil
	})
}

// listener hears what is said to the group on a link of the laptop.
type listener struct {
	conn *ipv4.PacketConn
}

func listen(t *testing.T, link string) *listener {
	t.Helper()
	c, err := net.ListenPacket("udp4", group4.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	conn := ipv4.NewPacketConn(c)
	l, err := net.InterfaceByName(link)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(conn.JoinGroup(l, group4), conn.SetMulticastInterface(l), conn.SetMulticastLoopback(false)); err != nil {
		t.Fatal(err)
	}
	return &listener{conn}
}

// next is the next answer, or nothing within the time.
func (l *listener) next(within time.Duration) *dns.Msg {
	_ = l.conn.SetReadDeadline(time.Now().Add(within))
	buf := make([]byte, packetMax)
	for {
		n, _, _, err := l.conn.ReadFrom(buf)
		if err != nil {
			return nil
		}
		var m dns.Msg
		if m.Unpack(buf[:n]) == nil && m.Response {
			return &m
		}
	}
}

// hears waits for a record, with time left or without.
func (l *listener) hears(t *testing.T, text string, alive bool) {
	t.Helper()
	end := time.Now().Add(time.Minute)
	for time.Now().Before(end) {
		m := l.next(time.Until(end))
		if m == nil {
			break
		}
		for _, rr := range m.Answer {
			if a, ok := rr.(*dns.A); ok && a.A.String() == text && (rr.Header().Ttl > 0) == alive {
				return
			}
		}
	}
	t.Fatalf("nothing heard of %s (alive: %v)", text, alive)
}

// Whoever only listens hears of a new address, that the old one is no more, and
// of the end.
func TestAnnouncements(t *testing.T) {
	lan(t, "lan0", "192.168.70.1/24")
	ear := listen(t, "lan0")
	a := newBox(t, "capsule-a3f2", "a3f2")
	a.plug(t, "lan0", "porta", "eth0")
	a.responder.On([]Link{a.link(t, "eth0", "192.168.70.20/24")})
	ear.hears(t, "192.168.70.20", true)

	l := a.ns.Link(t, "eth0")
	old, err := netlink.ParseAddr("192.168.70.20/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.ns.Handle.AddrDel(l, old); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	a.responder.On([]Link{a.link(t, "eth0", "192.168.70.30/24")})
	ear.hears(t, "192.168.70.20", false)
	finds(t, hosts("192.168.70.30:50000"))
	t.Logf("found at its new address after %v", time.Since(begun))

	a.stop()
	ear.hears(t, "192.168.70.30", false)
}

// However many ask the group, it is told at most once a second.
func TestFlood(t *testing.T) {
	lan(t, "lan0", "192.168.70.1/24")
	a := newBox(t, "capsule-a3f2", "a3f2")
	a.plug(t, "lan0", "porta", "eth0")
	a.responder.On([]Link{a.link(t, "eth0", "192.168.70.20/24")})
	finds(t, hosts("192.168.70.20:50000"))
	ear := listen(t, "lan0")
	data, err := question()
	if err != nil {
		t.Fatal(err)
	}
	for ear.next(2*time.Second) != nil { // what announces, and what the search caused
	}
	begun := time.Now()
	for range 300 {
		if _, err := ear.conn.WriteTo(data, nil, group4); err != nil {
			t.Fatal(err)
		}
	}
	answered := 0
	for ear.next(3*time.Second) != nil {
		answered++
	}
	if most := 2 + int(time.Since(begun)/pause); answered == 0 || answered > most {
		t.Errorf("%d answers, want 1 to %d", answered, most)
	}
}

// From the kernel's news of an address to who finds it there. Here the test's own
// machine is the capsule.
func TestFollowsUplink(t *testing.T) {
	laptop := nettest.New(t)
	nettest.Cable(t, "up0", laptop, "eth0")
	laptop.Addr(t, "eth0", "2001:db8:70::1/64")
	r := NewResponder(slog.New(slog.DiscardHandler))
	r.Say(testService("capsule-a3f2", "a3f2"))
	settings := uplink.NewSettings(uplink.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	parts.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	parts.Go(func() {
		err := uplink.Run(ctx, uplink.Options{
			Settings: settings, RunDir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
			Select: func(l netlink.Link) bool { return l.Attrs().Name == "up0" },
			OnChange: func(s uplink.State) {
				var links []Link
				for _, l := range s.Links {
					links = append(links, Link(l))
				}
				r.On(links)
			},
		})
		if err != nil {
			t.Error(err)
		}
	})
	old := ""
	for _, address := range []string{"2001:db8:70::20", "2001:db8:70::30"} {
		settings.Set(uplink.Config{Links: []uplink.LinkConfig{{
			Link: "up0", Addresses: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(address), 64)},
		}}})
		begun := time.Now()
		nettest.Eventually(t, 10*time.Second, func() error {
			var at []netip.Addr
			err := laptop.Try(func() error {
				ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
				defer cancel()
				return Discover(ctx, func(f Found) { at = f.Addresses })
			})
			if err != nil || !slices.Contains(at, netip.MustParseAddr(address)) || old != "" && slices.Contains(at, netip.MustParseAddr(old)) {
				return fmt.Errorf("found at %v, want %s and no more %q: %w", at, address, old, err)
			}
			return nil
		})
		t.Logf("found at %s after %v", address, time.Since(begun))
		old = address
	}
}
