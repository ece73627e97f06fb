package nettest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
)

// Grant is what a DHCP server says to whoever asks.
type Grant struct {
	Server netip.Prefix // who says it, and the network
	Give   netip.Addr
	Lease  time.Duration
	Renew  time.Duration // until T1, when it is said
	DNS    netip.Addr
	More   []dhcpv4.Modifier
	NAK    bool // every request
	Mute   bool
}

// DHCP is a server that does as told.
type DHCP struct {
	mu    sync.Mutex
	grant Grant
	seen  []*dhcpv4.DHCPv4
}

// NewDHCP makes one that Serve starts.
func NewDHCP(g Grant) *DHCP { return &DHCP{grant: g} }

// Serve answers on a link of a namespace until the test ends.
func (d *DHCP) Serve(t testing.TB, ns *NS, link string) {
	t.Helper()
	var server *server4.Server
	ns.Do(t, func() (err error) {
		server, err = server4.NewServer(link, &net.UDPAddr{Port: 67}, d.handle)
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve()
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
}

// Set changes what is said from now on.
func (d *DHCP) Set(change func(*Grant)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.grant)
}

// Requests are those of a type that came since the count.
func (d *DHCP) Requests(since int, kind dhcpv4.MessageType) []*dhcpv4.DHCPv4 {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []*dhcpv4.DHCPv4
	for _, m := range d.seen[since:] {
		if m.MessageType() == kind {
			list = append(list, m)
		}
	}
	return list
}

// Count of all that came.
func (d *DHCP) Count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.seen)
}

func (d *DHCP) handle(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = append(d.seen, m)
	if d.grant.Mute {
		return
	}
	r, err := d.grant.reply(m)
	if err != nil {
		return
	}
	dest := &net.UDPAddr{IP: net.IPv4bcast, Port: 68}
	if !m.ClientIPAddr.IsUnspecified() {
		dest.IP = m.ClientIPAddr
	}
	_, _ = conn.WriteTo(r.ToBytes(), dest)
}

func (g Grant) reply(m *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	server := g.Server.Addr().AsSlice()
	r, err := dhcpv4.NewReplyFromRequest(m, append([]dhcpv4.Modifier{
		dhcpv4.WithYourIP(g.Give.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server)),
		dhcpv4.WithNetmask(net.CIDRMask(g.Server.Bits(), 32)),
		dhcpv4.WithOption(dhcpv4.OptRouter(server)),
		dhcpv4.WithOption(dhcpv4.OptDNS(g.DNS.AsSlice())),
		dhcpv4.WithLeaseTime(uint32(g.Lease / time.Second)),
	}, g.More...)...)
	if err != nil {
		return nil, err
	}
	if g.Renew > 0 {
		r.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionRenewTimeValue, binary.BigEndian.AppendUint32(nil, uint32(g.Renew/time.Second))))
	}
	asked := m.RequestedIPAddress()
	if asked == nil {
		asked = m.ClientIPAddr
	}
	switch {
	case m.MessageType() == dhcpv4.MessageTypeDiscover:
		r.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeOffer))
	case g.NAK || m.ClientIPAddr.IsUnspecified() && !asked.Equal(g.Give.AsSlice()):
		r.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak))
		r.YourIPAddr = net.IPv4zero
	default:
		r.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeAck))
	}
	return r, nil
}
