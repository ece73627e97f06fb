package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"capsule/internal/links"
)

// hostLink names the capsule's end of a workload's link.
func (n *Network) hostLink(a addresses) string {
	return fmt.Sprintf("%s%d", hostLinkPrefix, n.opts.Subnets.number(a))
}

// ensureLink connects the namespace with the bridge, as it has to be.
func (n *Network) ensureLink(name, ns string, a addresses) error {
	f, err := os.Open(ns)
	if err != nil {
		return err
	}
	defer f.Close()
	inside, err := netlink.NewHandleAt(netns.NsHandle(f.Fd()))
	if err != nil {
		return fmt.Errorf("open netlink in network namespace of %q: %w", name, err)
	}
	defer inside.Close()
	if err := n.createPair(name, inside, int(f.Fd()), a); err != nil {
		return err
	}
	if err := n.guestSysctls(ns); err != nil {
		return err
	}
	return n.configureGuest(inside, a)
}

// createPair makes the two ends in one step, each where it belongs, unless both
// are there.
func (n *Network) createPair(name string, inside *netlink.Handle, nsFD int, a addresses) error {
	br, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge %q: %w", bridgeName, err)
	}
	host, err := netlink.LinkByName(n.hostLink(a))
	if err == nil {
		peer, err := inside.LinkByName(guestLink)
		if err == nil && peer.Attrs().ParentIndex == host.Attrs().Index && host.Attrs().MasterIndex == br.Attrs().Index {
			return upQuietly(host, a, n.ipv6)
		}
		if err := netlink.LinkDel(host); err != nil {
			return fmt.Errorf("remove link %q left over: %w", n.hostLink(a), err)
		}
	}
	if old, err := inside.LinkByName(guestLink); err == nil {
		if err := inside.LinkDel(old); err != nil {
			return fmt.Errorf("remove old link of workload %q: %w", name, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = n.hostLink(a), br.Attrs().Index
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerNamespace, pair.PeerHardwareAddr = guestLink, netlink.NsFd(nsFD), a.hardware()
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("create link of workload %q: %w", name, err)
	}
	host, err = netlink.LinkByName(n.hostLink(a))
	if err != nil {
		return fmt.Errorf("find link of workload %q: %w", name, err)
	}
	// For people: it changes nothing when it is missing.
	_ = netlink.LinkSetAlias(host, name)
	return upQuietly(host, a, n.ipv6)
}

// upQuietly brings up a member of the bridge, which needs no address itself.
func upQuietly(host netlink.Link, a addresses, ipv6 bool) error {
	if err := lockPort(host, a); err != nil {
		return err
	}
	if ipv6 {
		if err := setSysctl("ipv6/conf/"+host.Attrs().Name+"/disable_ipv6", "1", true); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(host); err != nil {
		return fmt.Errorf("bring up link %q: %w", host.Attrs().Name, err)
	}
	return nil
}

// lockPort has the bridge take from a workload what it sends by its own hardware
// address, and nothing else: rules know workloads by it.
func lockPort(host netlink.Link, a addresses) error {
	err := netlink.NeighSet(&netlink.Neigh{LinkIndex: host.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER,
		State: netlink.NUD_NOARP, HardwareAddr: a.hardware()})
	if err != nil {
		return fmt.Errorf("tell the bridge what is behind link %q: %w", host.Attrs().Name, err)
	}
	set := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(host.Attrs().Index)
	set.AddData(msg)
	port := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	port.AddRtAttr(nl.IFLA_BRPORT_LOCKED, []byte{1})
	set.AddData(port)
	if _, err := set.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("lock link %q: %w", host.Attrs().Name, err)
	}
	return nil
}

// guestSysctls set what a workload expects of its network: any port for any
// user, ping without privileges, addresses usable at once.
func (n *Network) guestSysctls(ns string) error {
	return inNetNS(ns, func() error {
		for _, s := range [][2]string{
			{"ipv4/ip_unprivileged_port_start", "0"},
			{"ipv4/ping_group_range", "0 2147483647"},
			{"ipv6/conf/all/accept_ra", "0"},
			{"ipv6/conf/default/accept_ra", "0"},
			{"ipv6/conf/" + guestLink + "/accept_ra", "0"},
			{"ipv6/conf/" + guestLink + "/accept_dad", "0"},
		} {
			if err := setSysctl(s[0], s[1], strings.HasPrefix(s[0], "ipv6/")); err != nil {
				return err
			}
		}
		return nil
	})
}

// configureGuest brings up the links inside and routes all else to the capsule.
func (n *Network) configureGuest(inside *netlink.Handle, a addresses) error {
	if err := loopbackUp(inside); err != nil {
		return err
	}
	eth, err := inside.LinkByName(guestLink)
	if err != nil {
		return fmt.Errorf("find link inside network namespace: %w", err)
	}
	if err := inside.LinkSetUp(eth); err != nil {
		return fmt.Errorf("bring up link inside network namespace: %w", err)
	}
	gateways := n.gateways()
	for i, p := range n.opts.Subnets.prefixes(a, n.ipv6) {
		if err := addAddress(inside, eth, p); err != nil {
			return err
		}
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if p.Addr().Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		route := &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: ipNet(all), Gw: gateways[i].AsSlice()}
		if err := inside.RouteReplace(route); err != nil {
			return fmt.Errorf("add default route by %s: %w", gateways[i], err)
		}
	}
	return nil
}

func loopbackUp(inside *netlink.Handle) error {
	lo, err := inside.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback inside network namespace: %w", err)
	}
	if err := inside.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up loopback inside network namespace: %w", err)
	}
	return nil
}

// removeLink deletes the capsule's end, and the other one with it.
func removeLink(name string) error {
	l, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("remove link %q: %w", name, err)
	}
	return nil
}

// strayLinks are members of the bridge that belong to no address in use.
func (n *Network) strayLinks(held map[string]addresses) ([]string, error) {
	all, err := links.List()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	used := map[string]bool{}
	for _, a := range held {
		used[n.hostLink(a)] = true
	}
	var stray []string
	for _, l := range all {
		name := l.Attrs().Name
		if l.Type() == "veth" && strings.HasPrefix(name, hostLinkPrefix) && !used[name] {
			stray = append(stray, name)
		}
	}
	return stray, nil
}
