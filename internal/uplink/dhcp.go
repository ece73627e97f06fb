package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"golang.org/x/sys/unix"
)

// errRefused is a DHCPNAK.
var errRefused = errors.New("refused")

const (
	// leaseMin and leaseDefault, when a server grants less than is of use, or
	// for no stated time.
	leaseMin     = 10 * time.Second
	leaseDefault = time.Hour
	// mtuMin is what every IPv4 host must take (RFC 791); some servers send 0.
	mtuMin = 576
	// serversMax of one kind that are kept of an answer.
	serversMax = 8
)

// dhcp speaks with servers on one link.
type dhcp struct {
	link     string
	hardware net.HardwareAddr
	hostname func() string // "" is none
}

// request asks and waits for the answer until ctx ends, sending again after a
// while that doubles. The error of a refusal is errRefused.
func (d dhcp) request(ctx context.Context, what ask, old *Lease, again time.Duration) (*Lease, error) {
	client, dest, err := d.client(ctx, what, old, again)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	msg, err := d.message(what, old)
	if err != nil {
		return nil, err
	}
	if what == discover {
		offer, err := d.exchange(ctx, client, dest, msg, dhcpv4.MessageTypeOffer)
		if err != nil {
			return nil, err
		}
		if msg, err = dhcpv4.NewRequestFromOffer(offer, d.common()...); err != nil {
			return nil, err
		}
	}
	sent := time.Now()
	answer, err := d.exchange(ctx, client, dest, msg, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak)
	if err != nil {
		return nil, err
	}
	if answer.MessageType() == dhcpv4.MessageTypeNak {
		return nil, fmt.Errorf("DHCP server %s %w the address: %q", answer.ServerIdentifier(), errRefused, answer.Message())
	}
	return leaseOf(answer, old, sent)
}

// client opens the socket that fits: a renewal goes from our address to the
// server's, all else is broadcast.
func (d dhcp) client(ctx context.Context, what ask, old *Lease, again time.Duration) (*nclient4.Client, *net.UDPAddr, error) {
	options := []nclient4.ClientOpt{nclient4.WithHWAddr(d.hardware), nclient4.WithTimeout(again), nclient4.WithRetry(-1)}
	if what != renew {
		client, err := nclient4.New(d.link, options...)
		return client, nclient4.DefaultServers, err
	}
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return bindToLink(c, d.link) }}
	conn, err := listen.ListenPacket(ctx, "udp4", netip.AddrPortFrom(old.Address.Addr(), nclient4.ClientPort).String())
	if err != nil {
		return nil, nil, err
	}
	client, err := nclient4.NewWithConn(conn, d.hardware, options...)
	return client, net.UDPAddrFromAddrPort(netip.AddrPortFrom(old.Server, nclient4.ServerPort)), err
}

func (d dhcp) exchange(ctx context.Context, c *nclient4.Client, dest *net.UDPAddr, msg *dhcpv4.DHCPv4, first dhcpv4.MessageType, more ...dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	fits := nclient4.IsMessageType(first, more...)
	wanted := msg.ServerIdentifier()
	return c.SendAndRead(ctx, dest, msg, func(p *dhcpv4.DHCPv4) bool {
		return fits(p) && (wanted == nil || wanted.Equal(p.ServerIdentifier()))
	})
}

// common is in every message of ours.
func (d dhcp) common() []dhcpv4.Modifier {
	mods := []dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(nclient4.MaxMessageSize)),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
			dhcpv4.OptionDomainName, dhcpv4.OptionInterfaceMTU, dhcpv4.OptionNTPServers,
			dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue),
		// The same identity at every boot and in the boot loader (RFC 2132, 9.14).
		dhcpv4.WithOption(dhcpv4.OptClientIdentifier(append([]byte{1}, d.hardware...))),
	}
	if name := d.hostname(); name != "" {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptHostName(name)))
	}
	return mods
}

// message is the request by RFC 2131, table 5.
func (d dhcp) message(what ask, old *Lease) (*dhcpv4.DHCPv4, error) {
	if what == discover {
		mods := d.common()
		if old != nil {
			mods = append(mods, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(old.Address.Addr().AsSlice())))
		}
		return dhcpv4.NewDiscovery(d.hardware, mods...)
	}
	mods := append(d.common(), dhcpv4.WithHwAddr(d.hardware), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest))
	address := old.Address.Addr().AsSlice()
	if what == reboot {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(address)))
	} else {
		mods = append(mods, dhcpv4.WithClientIP(address))
	}
	return dhcpv4.New(mods...)
}

// leaseOf reads an acknowledgement. What a server leaves out of a renewal stays
// as in the old lease.
func leaseOf(ack *dhcpv4.DHCPv4, old *Lease, sent time.Time) (*Lease, error) {
	address, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok || !usable(address) {
		return nil, fmt.Errorf("DHCP server %s offers no usable address, but %s", ack.ServerIdentifier(), ack.YourIPAddr)
	}
	l := &Lease{Acquired: sent, Address: netip.PrefixFrom(address, maskBits(ack.SubnetMask(), address, old))}
	l.Server = firstAddr([]net.IP{ack.ServerIdentifier()})
	if !l.Server.IsValid() && old != nil {
		l.Server = old.Server
	}
	l.Router = firstAddr(ack.Router())
	l.DNS = addrs(ack.DNS())
	l.NTP = addrs(ack.NTPServers())
	l.Domain = domain(ack.DomainName())
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); err == nil && mtu >= mtuMin {
		l.MTU = int(mtu)
	}
	l.times(ack)
	return l, nil
}

// times takes the lease's times of the answer, in order.
func (l *Lease) times(ack *dhcpv4.DHCPv4) {
	l.Expiry = max(ack.IPAddressLeaseTime(leaseDefault), leaseMin)
	l.Rebind = ack.IPAddressRebindingTime(l.Expiry / 8 * 7)
	if l.Rebind <= 0 || l.Rebind >= l.Expiry {
		l.Rebind = l.Expiry / 8 * 7
	}
	l.Renew = ack.IPAddressRenewalTime(l.Expiry / 2)
	if l.Renew <= 0 || l.Renew >= l.Rebind {
		l.Renew = min(l.Expiry/2, l.Rebind/2)
	}
}

// maskBits is the length of the network: as said, as before, or by class.
func maskBits(mask net.IPMask, a netip.Addr, old *Lease) int {
	if ones, size := mask.Size(); size == 32 && ones > 0 {
		return ones
	}
	if old != nil && old.Address.Addr() == a {
		return old.Address.Bits()
	}
	ones, _ := net.IP(a.AsSlice()).DefaultMask().Size()
	return ones
}

func usable(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsLoopback()
}

func firstAddr(ips []net.IP) netip.Addr {
	if list := addrs(ips); len(list) > 0 {
		return list[0]
	}
	return netip.Addr{}
}

// addrs keeps what can be an address of a server.
func addrs(ips []net.IP) []netip.Addr {
	var list []netip.Addr
	for _, ip := range ips[:min(len(ips), serversMax)] {
		if a, ok := netip.AddrFromSlice(ip.To4()); ok && usable(a) {
			list = append(list, a)
		}
	}
	return list
}

// domain returns a name that is safe to write into resolv.conf, or "".
func domain(s string) string {
	s = strings.Trim(s, ". \x00")
	for _, c := range s {
		if !(c == '-' || c == '.' || c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z') {
			return ""
		}
	}
	if len(s) > 253 {
		return ""
	}
	return s
}

// bindToLink ties a socket to the link, whatever the routes say.
func bindToLink(c syscall.RawConn, link string) error {
	var bindErr error
	err := c.Control(func(fd uintptr) { bindErr = unix.BindToDevice(int(fd), link) })
	return errors.Join(err, bindErr)
}
