package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"capsule/internal/nettest"

	"golang.org/x/sys/unix"
)

// routerAdvertisement of a /64 prefix and a DNS server (RFC 4861, 4.2; RFC 8106).
func routerAdvertisement(prefix, dns string) []byte {
	b := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // lifetime 1800 s
	b = append(b, 3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0)
	b = append(b, netip.MustParseAddr(prefix).AsSlice()...)
	b = append(b, 25, 3, 0, 0, 0, 0, 0x02, 0x58)
	return append(b, netip.MustParseAddr(dns).AsSlice()...)
}

// advertise sends it to all nodes of the LAN.
func (l *lan) advertise(b []byte) error {
	return l.ns.Try(func() error {
		dialer := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			return errors.Join(c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255)
			}), err)
		}}
		conn, err := dialer.ListenPacket(context.Background(), "ip6:ipv6-icmp", "fe80::1%"+lanLink)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.WriteTo(b, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: lanLink})
		return err
	})
}

// Addresses, the default route and DNS servers come from router advertisements
// too, though the machine forwards; no DHCP server is needed for that.
func TestSLAAC(t *testing.T) {
	l := newLAN(t)
	l.ns.Addr(t, lanLink, "fe80::1/64")
	var self *nettest.NS
	self.Sysctl(t, "ipv6/conf/all/forwarding", "1")
	t.Cleanup(func() { self.Sysctl(t, "ipv6/conf/all/forwarding", "0") })
	d := run(t, t.TempDir())
	ra := routerAdvertisement("2001:db8:77::", "2001:db8:77::53")
	nettest.Eventually(t, 10*time.Second, func() error {
		if err := l.advertise(ra); err != nil {
			return err
		}
		s := d.last()
		if len(s.Addresses) != 1 || !netip.MustParsePrefix("2001:db8:77::/64").Contains(s.Addresses[0].Addr()) ||
			!slices.Equal(s.DNS, []netip.Addr{netip.MustParseAddr("2001:db8:77::53")}) || s.Message != "" {
			return fmt.Errorf("state %+v", s)
		}
		return nil
	})
}
