package network

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
)

// Published is a port of the capsule that leads to a workload, or a range of
// them that leads to as many.
type Published struct {
	Workload string
	Address  netip.Addr // of the capsule; the zero Addr is all, 0.0.0.0 and :: all of a family
	Port     uint16     // of the capsule
	End      uint16     // last one of a range; 0 is Port
	Target   uint16     // inside the workload, of Port; unused with Host
	Protocol string     // "tcp" or "udp"
	From     Source     // who may connect from outside; the zero Source is anybody
	Host     bool       // the workload lives in the capsule's own network
}

// Source is who may connect to a port from outside of the capsule. The capsule
// itself and its workloads always may.
type Source struct {
	LAN    bool         // the neighbours: what the uplinks reach without a router
	Prefix netip.Prefix // unless LAN; the zero Prefix is anybody
}

// ParseSource reads "any", "" for the same, "lan", an address or a network.
func ParseSource(s string) (Source, error) {
	switch s {
	case "", "any":
		return Source{}, nil
	case "lan":
		return Source{LAN: true}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return Source{Prefix: netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return Source{}, fmt.Errorf("source %q is none of lan, any, an address or a network: %w", s, errdefs.ErrInvalidArgument)
	}
	return Source{Prefix: p.Masked()}, nil
}

// anybody says whether nobody is kept out.
func (s Source) anybody() bool { return s == Source{} }

// allows says whether an address outside of the capsule may connect.
func (s Source) allows(a netip.Addr, lan []netip.Prefix) bool {
	if !s.LAN {
		return s.anybody() || s.Prefix.Contains(a)
	}
	return slices.ContainsFunc(lan, func(p netip.Prefix) bool { return p.Contains(a) })
}

// last is the last port.
func (p Published) last() uint16 { return max(p.Port, p.End) }

// String is "8080/tcp", "8000-8100/udp" or "192.168.1.5:8080/tcp".
func (p Published) String() string {
	port := fmt.Sprint(p.Port)
	if p.last() > p.Port {
		port += fmt.Sprintf("-%d", p.last())
	}
	switch {
	case !p.Address.IsValid():
		return port + "/" + p.Protocol
	case p.Address.Is6():
		return fmt.Sprintf("[%s]:%s/%s", p.Address, port, p.Protocol)
	}
	return fmt.Sprintf("%s:%s/%s", p.Address, port, p.Protocol)
}

func (p Published) wildcard() bool { return !p.Address.IsValid() || p.Address.IsUnspecified() }

// overlaps says whether one packet could be meant for both.
func (p Published) overlaps(o Published) bool {
	if p.Protocol != o.Protocol || p.last() < o.Port || o.last() < p.Port {
		return false
	}
	if !p.Address.IsValid() || !o.Address.IsValid() {
		return true
	}
	if p.Address.Is4() != o.Address.Is4() {
		return false
	}
	return p.wildcard() || o.wildcard() || p.Address == o.Address
}

// reserved are the ports that the capsule itself needs.
var reserved = []struct {
	Published
	holder string
}{
	{Published{Port: apiPort, Protocol: "tcp"}, "the capsule's own API"},
	// Bridge workloads may publish 53: DNS on the bridge is left out there.
	{Published{Port: dnsPort, Protocol: "tcp", Host: true}, "the capsule's own DNS"},
	{Published{Port: dnsPort, Protocol: "udp", Host: true}, "the capsule's own DNS"},
}

// Conflicts returns an error of class AlreadyExists that names the holder when
// two of the ports overlap, or one is the capsule's own. The earlier one of the
// list is the holder.
func Conflicts(ports []Published) error {
	held := shelves{}
	for _, p := range ports {
		p.Address = p.Address.Unmap()
		for _, r := range reserved {
			if r.overlaps(p) && (!r.Host || p.Host && p.wildcard()) {
				p.Port, p.End = r.Port, 0
				return fmt.Errorf("publish port of workload %q: port %s is held by %s: %w", p.Workload, p, r.holder, errdefs.ErrAlreadyExists)
			}
		}
		if o, taken := held.put(p); taken {
			return fmt.Errorf("publish port of workload %q: port %s is already published by workload %q: %w", p.Workload, o, o.Workload, errdefs.ErrAlreadyExists)
		}
	}
	return nil
}

// shelves hold ports by protocol and 256 neighbouring numbers, so that looking
// for who holds one is no walk through thousands.
type shelves map[string]*[256][]Published

// put adds a port, or returns the first one that was there before and overlaps.
func (s shelves) put(p Published) (holder Published, taken bool) {
	if s[p.Protocol] == nil {
		s[p.Protocol] = new([256][]Published)
	}
	all := s[p.Protocol]
	for i := int(p.Port >> 8); i <= int(p.last()>>8); i++ {
		if j := slices.IndexFunc(all[i], p.overlaps); j >= 0 {
			return all[i][j], true
		}
		all[i] = append(all[i], p)
	}
	return Published{}, false
}
