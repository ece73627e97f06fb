package network

import (
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
)

// Published is a port of the capsule that leads to a workload. On ::1 it leads
// nowhere for a bridge workload: the kernel lets nothing that came from another
// link arrive at that address, so there is no way back. 127.0.0.1 works.
type Published struct {
	Workload string
	Address  netip.Addr // of the capsule; the zero Addr is all, 0.0.0.0 and :: all of a family
	Port     uint16     // of the capsule
	Target   uint16     // inside the workload; unused with Host
	Protocol string     // "tcp" or "udp"
	Host     bool       // the workload lives in the capsule's own network
}

// String is "8080/tcp" or "192.168.1.5:8080/tcp".
func (p Published) String() string {
	if p.wildcard() && !p.Address.IsValid() {
		return fmt.Sprintf("%d/%s", p.Port, p.Protocol)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.Address, p.Port), p.Protocol)
}

func (p Published) wildcard() bool { return !p.Address.IsValid() || p.Address.IsUnspecified() }

// overlaps says whether one packet could be meant for both.
func (p Published) overlaps(o Published) bool {
	if p.Port != o.Port || p.Protocol != o.Protocol {
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
	for i, p := range ports {
		p.Address = p.Address.Unmap()
		for _, r := range reserved {
			if r.overlaps(p) && (!r.Host || p.Host && p.wildcard()) {
				return fmt.Errorf("publish port of workload %q: port %s is held by %s: %w", p.Workload, p, r.holder, errdefs.ErrAlreadyExists)
			}
		}
		for _, o := range ports[:i] {
			o.Address = o.Address.Unmap()
			if o.overlaps(p) {
				return fmt.Errorf("publish port of workload %q: port %s is already published by workload %q: %w", p.Workload, o, o.Workload, errdefs.ErrAlreadyExists)
			}
		}
	}
	return nil
}
