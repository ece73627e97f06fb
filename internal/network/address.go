package network

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	"github.com/containerd/errdefs"
)

// Subnets are the networks of the bridge. The first host address of each is
// the capsule's own.
type Subnets struct {
	IPv4 netip.Prefix // at most /16
	IPv6 netip.Prefix // at most /64
}

// DefaultSubnets are private by RFC 1918 and RFC 4193.
var DefaultSubnets = Subnets{
	IPv4: netip.MustParsePrefix("172.30.0.0/16"),
	IPv6: netip.MustParsePrefix("fd7a:9c1e:30::/64"),
}

var (
	loopback4 = netip.MustParsePrefix("127.0.0.0/8")
	loopback6 = netip.MustParsePrefix("::1/128")
)

// Gateway4 is the capsule's IPv4 address on the bridge.
func (s Subnets) Gateway4() netip.Addr { return s.host(1).IPv4 }

// Gateway6 is the capsule's IPv6 address on the bridge.
func (s Subnets) Gateway6() netip.Addr { return s.host(1).IPv6 }

// addresses of one workload; the same host number in both networks.
type addresses struct {
	IPv4    netip.Addr `json:"ipv4"`
	IPv6    netip.Addr `json:"ipv6"`
	DenyLAN bool       `json:"denyLAN,omitempty"`
}

// host returns the addresses with that number.
func (s Subnets) host(n uint16) addresses {
	v4 := s.IPv4.Masked().Addr().As4()
	v6 := s.IPv6.Masked().Addr().As16()
	v4[2], v4[3] = v4[2]|byte(n>>8), v4[3]|byte(n)
	v6[14], v6[15] = byte(n>>8), byte(n)
	return addresses{IPv4: netip.AddrFrom4(v4), IPv6: netip.AddrFrom16(v6)}
}

// hosts is the largest host number.
func (s Subnets) hosts() uint16 { return uint16(1<<(32-s.IPv4.Bits()) - 2) }

// number is the inverse of host.
func (s Subnets) number(a addresses) uint16 {
	net4, v4 := s.IPv4.Masked().Addr().As4(), a.IPv4.As4()
	return uint16(v4[2]^net4[2])<<8 | uint16(v4[3]^net4[3])
}

// hardware is the address of the workload's link, made from its IPv4 address so
// that neighbours that know the one know the other.
func (a addresses) hardware() net.HardwareAddr {
	v4 := a.IPv4.As4()
	return net.HardwareAddr{0x02, 0xc5, v4[0], v4[1], v4[2], v4[3]}
}

// list returns the addresses that are in use.
func (a addresses) list(ipv6 bool) []netip.Addr {
	if ipv6 {
		return []netip.Addr{a.IPv4, a.IPv6}
	}
	return []netip.Addr{a.IPv4}
}

const (
	// firstHost is the first number of a workload; 1 is the capsule.
	firstHost = 2
	// workloadsMax is how many links the kernel lets a bridge have (BR_MAX_PORTS of
	// net/bridge/br_private.h); that there are more addresses lets them rest.
	workloadsMax = 1<<10 - 1
)

// pick returns the next free number after last, going round at the end, so that
// a number just freed rests as long as possible: somebody may still send to it.
func pick(used map[uint16]bool, last, largest uint16) (uint16, error) {
	n := last
	for range int(largest) - firstHost + 1 {
		if n++; n > largest || n < firstHost {
			n = firstHost
		}
		if !used[n] {
			return n, nil
		}
	}
	return 0, errFull(int(largest) - firstHost + 1)
}

// errFull says that so many workloads are all that there is room for.
func errFull(count int) error {
	return fmt.Errorf("the bridge has room for %d workloads, and all of it is taken: delete one that is not needed any more, or give one that can do without an address \"network: none\": %w", count, errdefs.ErrResourceExhausted)
}

// decode reads an entry of the store; one of a network that this capsule no longer
// has counts as none. Its IPv6 address is that of today's network.
func (s Subnets) decode(value []byte) (addresses, bool) {
	var a addresses
	if err := json.Unmarshal(value, &a); err != nil || !s.IPv4.Contains(a.IPv4) {
		return addresses{}, false
	}
	a.IPv6 = s.host(s.number(a)).IPv6
	return a, true
}

// lookup returns the addresses that a workload holds.
func (n *Network) lookup(name string) (addresses, bool, error) {
	value, ok, err := n.opts.Store.Get(name)
	if err != nil || !ok {
		return addresses{}, false, err
	}
	a, ok := n.opts.Subnets.decode(value)
	return a, ok, nil
}

// held returns the addresses of all workloads.
func (n *Network) held() (map[string]addresses, error) {
	all := map[string]addresses{}
	err := n.opts.Store.Each(func(key string, value []byte) error {
		if a, ok := n.opts.Subnets.decode(value); ok {
			all[key] = a
		}
		return nil
	})
	return all, err
}

// allocate returns the workload's addresses, new ones when it has none.
func (n *Network) allocate(name string) (addresses, error) {
	if a, ok, err := n.lookup(name); err != nil || ok {
		return a, err
	}
	all, err := n.held()
	if err != nil {
		return addresses{}, err
	}
	used := map[uint16]bool{}
	for _, a := range all {
		used[n.opts.Subnets.number(a)] = true
	}
	if len(used) >= workloadsMax {
		return addresses{}, errFull(workloadsMax)
	}
	number, err := pick(used, n.last, n.opts.Subnets.hosts())
	if err != nil {
		return addresses{}, err
	}
	a := n.opts.Subnets.host(number)
	if err := n.put(name, a); err != nil {
		return addresses{}, err
	}
	n.last = number
	return a, nil
}

func (n *Network) put(name string, a addresses) error {
	value, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return n.opts.Store.Put(name, value)
}
