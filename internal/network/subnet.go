package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// around is what is kept of the networks around the capsule; no workload has a dot
// in its name.
const around = ".around"

// Spare networks of the bridge, for when the first one is an uplink's, too. That of
// IPv6 is one where a capsule is a workload of another.
var (
	spare4 = []netip.Prefix{DefaultSubnets.IPv4, netip.MustParsePrefix("10.230.0.0/16"), netip.MustParsePrefix("192.168.224.0/20")}
	spare6 = []netip.Prefix{DefaultSubnets.IPv6, netip.MustParsePrefix("fd7a:9c1e:31::/64"), netip.MustParsePrefix("fd7a:9c1e:32::/64")}
)

// surroundings are stored, since the bridge is made before an uplink has an
// address.
type surroundings struct {
	Bridge  netip.Prefix   `json:"bridge"`            // IPv4 of workloads
	Bridge6 netip.Prefix   `json:"bridge6,omitempty"` // none is the first one
	LAN     []netip.Prefix `json:"lan"`
}

func (n *Network) surroundings() (s surroundings, err error) {
	value, ok, err := n.opts.Store.Get(around)
	if err != nil || !ok || json.Unmarshal(value, &s) != nil || !s.Bridge.IsValid() {
		s = surroundings{Bridge: n.opts.Subnets.IPv4}
	}
	if !s.Bridge6.IsValid() {
		s.Bridge6 = n.opts.Subnets.IPv6
	}
	return s, err
}

// choose takes the bridge's networks: those of before, unless the machine was
// started and an uplink's is in the way.
func (n *Network) choose() error {
	s, err := n.surroundings()
	if err != nil {
		return err
	}
	before := Subnets{IPv4: s.Bridge, IPv6: s.Bridge6}
	n.opts.Subnets = before
	_, err = netlink.LinkByName(bridgeName)
	if booted := errors.As(err, &netlink.LinkNotFoundError{}); !booted {
		return nil
	}
	n.opts.Subnets = Subnets{IPv4: outOfTheWay(s.Bridge, spare4, s.LAN), IPv6: outOfTheWay(s.Bridge6, spare6, s.LAN)}
	if n.opts.Subnets == before {
		return nil
	}
	s.Bridge, s.Bridge6 = n.opts.Subnets.IPv4, n.opts.Subnets.IPv6
	return n.keep(s)
}

// outOfTheWay is the network that one has to be: itself, or the first of the spare
// ones that overlaps none around when it does.
func outOfTheWay(own netip.Prefix, spare, around []netip.Prefix) netip.Prefix {
	taken := func(p netip.Prefix) bool { return slices.ContainsFunc(around, p.Overlaps) }
	if free := slices.IndexFunc(spare, func(p netip.Prefix) bool { return !taken(p) }); taken(own) && free >= 0 {
		return spare[free]
	}
	return own
}

func (n *Network) keep(s surroundings) error {
	value, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return n.opts.Store.Put(around, value)
}

// overlap says which network of an uplink is in the way of the workloads', or "".
func overlap(own Subnets, lan []netip.Prefix) string {
	for _, p := range lan {
		for _, o := range []netip.Prefix{own.IPv4, own.IPv6} {
			if p.Overlaps(o) {
				return fmt.Sprintf("the network %s of an uplink overlaps that of the workloads, %s: they and it don't reach each other everywhere; a reboot moves the workloads", p, o)
			}
		}
	}
	return ""
}

// Overlap says which network of an uplink is in the way of the workloads' own, or "".
func (n *Network) Overlap() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return overlap(n.opts.Subnets, n.lan)
}
