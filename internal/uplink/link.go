package uplink

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"capsule/internal/links"
)

// wired says whether a link is a piece of Ethernet hardware: those have a
// parent device and no kind. Wireless ones have a physical layer of their own.
func wired(l netlink.Link) bool {
	a := l.Attrs()
	if l.Type() != "device" || a.EncapType != "ether" || a.ParentDev == "" {
		return false
	}
	_, err := os.Stat(filepath.Join("/sys/class/net", a.Name, "phy80211"))
	return errors.Is(err, fs.ErrNotExist)
}

// carrierOf says whether the other end is there. The kernel merges events that
// follow each other within a second, but counts.
func carrierOf(l netlink.Link) carrier {
	c := carrier{up: l.Attrs().RawFlags&unix.IFF_RUNNING != 0}
	if text, err := os.ReadFile(filepath.Join("/sys/class/net", l.Attrs().Name, "carrier_down_count")); err == nil {
		c.downs, _ = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	return c
}

// prepare sets what the kernel does by itself and brings the link up.
func prepare(l netlink.Link) error {
	name := l.Attrs().Name
	err := sysctls([][2]string{
		{"ipv4/conf/" + name + "/promote_secondaries", "1"},
		{"ipv4/conf/" + name + "/arp_notify", "1"},
		{"ipv6/conf/" + name + "/use_tempaddr", "0"},
	})
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up link %q: %w", name, err)
	}
	return nil
}

// metricBase of default routes, plus the link's index: the older link wins.
const metricBase = 1024

// configure gives the link the address, route and MTU of a lease, the new
// before the old goes. nil takes all addresses away but those that are declared.
func configure(l netlink.Link, lease *Lease, declared LinkConfig, log *slog.Logger) error {
	name := l.Attrs().Name
	if lease == nil {
		return removeAddresses(l, declared.has)
	}
	if lease.MTU > 0 {
		if err := netlink.LinkSetMTU(l, lease.MTU); err != nil {
			// Better an address with the wrong size of packets than none.
			log.Warn("uplink: set MTU", "link", name, "mtu", lease.MTU, "error", err)
		}
	}
	left := lease.Expiry - time.Since(lease.Acquired)
	addr := &netlink.Addr{IPNet: ipNet(lease.Address)}
	if left < lifetimeMax && !declared.has(lease.Address.Addr()) {
		// The kernel takes the address away even when we are dead.
		addr.ValidLft, addr.PreferedLft = int(left/time.Second)+1, int(left/time.Second)+1
	}
	if err := netlink.AddrReplace(l, addr); err != nil {
		return fmt.Errorf("add address %s to link %q: %w", lease.Address, name, err)
	}
	if err := setRoute(l, lease); err != nil {
		return err
	}
	return removeAddresses(l, func(a netip.Addr) bool { return a == lease.Address.Addr() || declared.has(a) })
}

// lifetimeMax that the kernel counts in seconds; above, for ever.
const lifetimeMax = (1<<31 - 1) * time.Second

func setRoute(l netlink.Link, lease *Lease) error {
	route := &netlink.Route{
		LinkIndex: l.Attrs().Index,
		Dst:       ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0)),
		Priority:  metricBase + l.Attrs().Index,
		Protocol:  unix.RTPROT_DHCP,
	}
	if !lease.Router.IsValid() {
		err := netlink.RouteDel(route)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove default route of link %q: %w", l.Attrs().Name, err)
		}
		return nil
	}
	route.Gw, route.Src = lease.Router.AsSlice(), lease.Address.Addr().AsSlice()
	if !lease.Address.Contains(lease.Router) {
		route.Flags = int(netlink.FLAG_ONLINK)
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("set default route by %s on link %q: %w", lease.Router, l.Attrs().Name, err)
	}
	return nil
}

// removeAddresses takes away all IPv4 addresses of the link but those to keep.
func removeAddresses(l netlink.Link, keep func(netip.Addr) bool) error {
	have, err := links.Addresses(l, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of link %q: %w", l.Attrs().Name, err)
	}
	for _, a := range have {
		if keep(addrOf(a)) {
			continue
		}
		err := netlink.AddrDel(l, &a)
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s of link %q: %w", a.IPNet, l.Attrs().Name, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
