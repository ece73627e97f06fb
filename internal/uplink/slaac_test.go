package uplink

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"capsule/internal/nettest"
)

// Addresses, the default route and DNS servers come from router advertisements
// too, though the machine forwards; no DHCP server is needed for that.
func TestSLAAC(t *testing.T) {
	l := newLAN(t)
	l.ns.Addr(t, lanLink, "fe80::1/64")
	var self *nettest.NS
	self.Sysctl(t, "ipv6/conf/all/forwarding", "1")
	t.Cleanup(func() { self.Sysctl(t, "ipv6/conf/all/forwarding", "0") })
	d := run(t, t.TempDir())
	ra := nettest.Advertisement{Router: netip.MustParseAddr("fe80::1"), Prefix: netip.MustParseAddr("2001:db8:77::"), DNS: netip.MustParseAddr("2001:db8:77::53")}
	nettest.Eventually(t, 10*time.Second, func() error {
		if err := ra.Send(l.ns, lanLink); err != nil {
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
