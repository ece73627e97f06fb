package nettest

import (
	"testing"

	"github.com/vishvananda/netlink"
)

// Tap is where a virtual machine's cable ends, on a bridge when one is named. It stays
// while the machine is off.
func Tap(t testing.TB, name, bridge string) {
	t.Helper()
	here := (*NS)(nil)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP}))
	t.Cleanup(func() { _ = netlink.LinkDel(here.Link(t, name)) })
	if bridge != "" {
		must(t, netlink.LinkSetMaster(here.Link(t, name), here.Link(t, bridge)))
	}
	here.Up(t, name)
}
