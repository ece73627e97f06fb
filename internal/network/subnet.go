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

// spare networks of the bridge, for when the first one is an uplink's, too.
var spare = []netip.Prefix{DefaultSubnets.IPv4, netip.MustParsePrefix("10.230.0.0/16"), netip.MustParsePrefix("192.168.224.0/20")}

// surroundings are stored, since the bridge is made before an uplink has an
// address.
type surroundings struct {
	Bridge netip.Prefix   `json:"bridge"` // IPv4 of workloads
	LAN    []netip.Prefix `json:"lan"`
}

func (n *Network) surroundings() (s surroundings, err error) {
	value, ok, err := n.opts.Store.Get(around)
	if err != nil || !ok || json.Unmarshal(value, &s) != nil || !s.Bridge.IsValid() {
		return surroundings{Bridge: n.opts.Subnets.IPv4}, err
	}
	return s, nil
}

// choose takes the bridge's network: the one of before, unless the machine was
// started and an uplink's is in its way.
func (n *Network) choose() error {
	s, err := n.surroundings()
	if err != nil {
		return err
	}
	_, err = netlink.LinkByName(bridgeName)
	if booted := errors.As(err, &netlink.LinkNotFoundError{}); booted && slices.ContainsFunc(s.LAN, s.Bridge.Overlaps) {
		free := slices.IndexFunc(spare, func(p netip.Prefix) bool { return !slices.ContainsFunc(s.LAN, p.Overlaps) })
		if free >= 0 {
			s.Bridge = spare[free]
			if err := n.keep(s); err != nil {
				return err
			}
		}
	}
	n.opts.Subnets.IPv4 = s.Bridge
	return nil
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
