package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridgeName is the link that all bridge workloads share.
const bridgeName = "capsule0"

// hostLinkPrefix starts the names of the capsule's ends of workload links.
const hostLinkPrefix = "wl"

// guestLink is the name of a workload's link inside its namespace.
const guestLink = "eth0"

// ensureBridge makes the bridge as it has to be and turns forwarding on.
func ensureBridge(s Subnets, ipv6 bool) error {
	br, err := netlink.LinkByName(bridgeName)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		// Given, else the bridge takes over the address of a member.
		attrs.HardwareAddr = addresses{IPv4: s.Gateway4()}.hardware()
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("create bridge %q: %w", bridgeName, err)
		}
		br, err = netlink.LinkByName(bridgeName)
	}
	if err != nil {
		return fmt.Errorf("find bridge %q: %w", bridgeName, err)
	}
	if err := bridgeSysctls(ipv6); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return fmt.Errorf("bring up bridge %q: %w", bridgeName, err)
	}
	for _, p := range s.prefixes(s.host(1), ipv6) {
		if err := addAddress(netlinkRoot, br, p); err != nil {
			return err
		}
	}
	if ipv6 {
		return acceptLoopback6(br)
	}
	return nil
}

// acceptLoopback6 lets answers to what was asked from ::1 in, whose destination is
// that again once the translation is undone: the kernel looks for a route of the
// link that they came by. Nobody on the bridge can send to ::1 itself: that is
// dropped before.
func acceptLoopback6(br netlink.Link) error {
	route := &netlink.Route{LinkIndex: br.Attrs().Index, Dst: ipNet(loopback6), Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Priority: 1}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("add route to %s by bridge %q: %w", loopback6, bridgeName, err)
	}
	return nil
}

func bridgeSysctls(ipv6 bool) error {
	for _, s := range []struct {
		path, value string
		optional    bool
	}{
		{"ipv4/ip_forward", "1", false},
		// The box reaches published ports through 127.0.0.1; chain guard keeps
		// everybody else off it.
		{"ipv4/conf/" + bridgeName + "/route_localnet", "1", false},
		// Between workloads nothing is filtered, whatever module is loaded.
		{"bridge/bridge-nf-call-iptables", "0", true},
		{"bridge/bridge-nf-call-ip6tables", "0", true},
	} {
		if err := setSysctl(s.path, s.value, s.optional); err != nil {
			return err
		}
	}
	if !ipv6 {
		return nil
	}
	for _, s := range [][2]string{
		{"ipv6/conf/all/forwarding", "1"},
		{"ipv6/conf/" + bridgeName + "/accept_dad", "0"},
		{"ipv6/conf/" + bridgeName + "/accept_ra", "0"},
	} {
		if err := setSysctl(s[0], s[1], false); err != nil {
			return err
		}
	}
	return nil
}

// prefixes are the addresses with the length of their network.
func (s Subnets) prefixes(a addresses, ipv6 bool) []netip.Prefix {
	p := []netip.Prefix{netip.PrefixFrom(a.IPv4, s.IPv4.Bits())}
	if ipv6 {
		p = append(p, netip.PrefixFrom(a.IPv6, s.IPv6.Bits()))
	}
	return p
}

// netlinkRoot works in the namespace of the process.
var netlinkRoot = &netlink.Handle{}

// addAddress gives a link an address that is usable at once: nobody else can
// have it, so there is nothing to detect.
func addAddress(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrReplace(link, a); err != nil {
		return fmt.Errorf("add address %s to link %q: %w", p, link.Attrs().Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
