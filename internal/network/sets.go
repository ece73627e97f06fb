package network

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// set is what a rule looks a packet up in, so that thousands of ports are one
// rule. It lives and dies with its rule.
type set struct {
	key      nftables.SetDatatype
	data     *nftables.SetDatatype // of a map
	interval bool
	elements []nftables.SetElement
	words    func() []string // the elements as text, which nobody needs of thousands
}

// group is ports that differ in nothing but the port and where it leads.
type group struct {
	groupKey
	ports []portRange
}

type groupKey struct {
	v4       bool
	address  netip.Addr // the zero Addr is all of the family
	from     Source
	protocol string
	keep     bool // the workload's port is the capsule's
}

// portRange leads to as many ports of an address.
type portRange struct {
	first, last uint16
	to          netip.Addr
	target      uint16
}

// groups sort the published ports of host or of bridge workloads into few rules.
// A port that is claimed twice, as it may be while its holder changes, belongs to
// the first: the kernel takes no doubtful sets.
func (d desired) groups(host bool) []*group {
	var groups []*group
	known := map[groupKey]*group{}
	taken := map[groupKey]*portSet{}
	for _, p := range d.Ports {
		if p.Host != host {
			continue
		}
		for _, v4 := range d.families() {
			if p.Address.IsValid() && p.Address.Is4() != v4 {
				continue
			}
			r := portRange{first: p.Port, last: p.last(), target: p.Target}
			if i := slices.IndexFunc(p.To, func(a netip.Addr) bool { return a.Is4() == v4 }); i >= 0 {
				r.to = p.To[i]
			} else if !host {
				continue
			}
			key := groupKey{v4: v4, protocol: p.Protocol}
			if !p.wildcard() {
				key.address = p.Address
			}
			if taken[key] == nil {
				taken[key] = new(portSet)
			}
			free := taken[key].claim(r)
			key.from, key.keep = p.From, host || p.Port == p.Target
			if known[key] == nil {
				known[key] = &group{groupKey: key}
				groups = append(groups, known[key])
			}
			known[key].ports = append(known[key].ports, free...)
		}
	}
	for _, g := range groups {
		slices.SortFunc(g.ports, func(a, b portRange) int { return cmp.Compare(a.first, b.first) })
	}
	return slices.DeleteFunc(groups, func(g *group) bool { return len(g.ports) == 0 })
}

// portSet has a bit for each port.
type portSet [1 << 16 / 64]uint64

// claim takes the ports of the range that are free, and returns them.
func (s *portSet) claim(r portRange) (free []portRange) {
	for port := int(r.first); port <= int(r.last); port++ {
		if s[port/64]&(1<<(port%64)) != 0 {
			continue
		}
		s[port/64] |= 1 << (port % 64)
		if n := len(free); n > 0 && int(free[n-1].last)+1 == port {
			free[n-1].last++
			continue
		}
		p := uint16(port)
		free = append(free, portRange{p, p, r.to, r.target + p - r.first})
	}
	return free
}

// at matches the addresses that the ports are published on.
func (g *group) at(local bool) rule {
	switch {
	case g.address.IsValid():
		return rule{addr("daddr", g.address)}
	case local:
		return rule{family(g.v4), toLocal()}
	}
	return rule{family(g.v4)}
}

// dnat sends to where the ports lead.
func (g *group) dnat() term {
	header, proto, address := headerName(g.v4), uint32(unix.NFPROTO_IPV6), nftables.TypeIP6Addr
	if g.v4 {
		proto, address = unix.NFPROTO_IPV4, nftables.TypeIPAddr
	}
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: proto, RegAddrMin: 1}
	s := &set{key: nftables.TypeInetService, data: &address, interval: g.keep, words: g.leads}
	if g.keep {
		for _, r := range g.ports {
			s.elements = append(s.elements, span(r.key(), r.after(), r.to.AsSlice())...)
		}
	} else {
		// The port stands in the register behind the address.
		nat.RegProtoMin, nat.Specified = unix.NFT_REG32_00+address.Bytes/4, true
		both := nftables.MustConcatSetType(address, nftables.TypeInetService)
		s.data = &both
		g.each(func(r portRange, port, target uint16) {
			value := append(r.to.AsSlice(), binaryutil.BigEndian.PutUint16(target)...)
			s.elements = append(s.elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(port), Val: append(value, 0, 0)})
		})
	}
	return term{text: fmt.Sprintf("dnat %s to %s dport map", header, g.protocol), set: s,
		exprs: append(loadPort(g.protocol), &expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true}, nat)}
}

// leads says of each range, or of each port, where it leads.
func (g *group) leads() (words []string) {
	if g.keep {
		for _, r := range g.ports {
			words = append(words, fmt.Sprintf("%s : %s", r, r.to))
		}
		return words
	}
	g.each(func(r portRange, port, target uint16) {
		words = append(words, fmt.Sprintf("%d : %s . %d", port, r.to, target))
	})
	return words
}

// each calls fn for each port with the one of the workload that it leads to.
func (g *group) each(fn func(r portRange, port, target uint16)) {
	for _, r := range g.ports {
		for i := range r.last - r.first + 1 {
			fn(r, r.first+i, r.target+i)
		}
	}
}

// String is "80" or "8000-8100".
func (r portRange) String() string {
	if r.first == r.last {
		return fmt.Sprint(r.first)
	}
	return fmt.Sprintf("%d-%d", r.first, r.last)
}

func (r portRange) key() []byte { return binaryutil.BigEndian.PutUint16(r.first) }

// after is the first port that is not in the range; nil when there is none.
func (r portRange) after() []byte {
	if r.last == 1<<16-1 {
		return nil
	}
	return binaryutil.BigEndian.PutUint16(r.last + 1)
}

// span is an interval from key to before end; without an end it has none.
func span(key, end, value []byte) []nftables.SetElement {
	s := []nftables.SetElement{{Key: key, Val: value}}
	if end != nil {
		s = append(s, nftables.SetElement{Key: end, IntervalEnd: true})
	}
	return s
}

// texts are values as text.
func texts[T fmt.Stringer](values []T) func() []string {
	return func() (words []string) {
		for _, v := range values {
			words = append(words, v.String())
		}
		return words
	}
}

// inSet matches what was loaded by the expressions.
func inSet(text string, s *set, load ...expr.Any) term {
	return term{text: text, set: s, exprs: append(load, &expr.Lookup{SourceRegister: 1})}
}

// dports matches any of the ports.
func dports(protocol string, ports []portRange) term {
	s := &set{key: nftables.TypeInetService, interval: true, words: texts(ports)}
	for _, r := range ports {
		s.elements = append(s.elements, span(r.key(), r.after(), nil)...)
	}
	return inSet(protocol+" dport", s, loadPort(protocol)...)
}

// addrIn matches an address within any of the networks, which have nothing in
// common.
func addrIn(field string, v4 bool, nets []netip.Prefix) term {
	s := &set{key: nftables.TypeIP6Addr, interval: true, words: texts(nets)}
	if v4 {
		s.key = nftables.TypeIPAddr
	}
	for _, p := range nets {
		var end []byte
		if a := lastAddr(p).Next(); a.IsValid() {
			end = a.AsSlice()
		}
		s.elements = append(s.elements, span(p.Addr().AsSlice(), end, nil)...)
	}
	return inSet(headerName(v4)+" "+field, s, append(family(v4).exprs, addressField(field, v4))...)
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// disjoint are the networks in order without those that lie within others.
func disjoint(nets []netip.Prefix) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range nets {
		list = append(list, p.Masked())
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var kept []netip.Prefix
	for _, p := range list {
		if n := len(kept); n == 0 || !kept[n-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	return kept
}

func ofFamily(v4 bool, nets []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(nets), func(p netip.Prefix) bool { return p.Addr().Is4() != v4 })
}

// etherFrom matches what workloads send, whatever address they say it is from.
func etherFrom(workloads []addresses) term {
	var cards []net.HardwareAddr
	s := &set{key: nftables.TypeEtherAddr}
	for _, a := range workloads {
		cards = append(cards, a.hardware())
		s.elements = append(s.elements, nftables.SetElement{Key: a.hardware()})
	}
	s.words = texts(cards)
	return inSet("ether saddr", s, meta(expr.MetaKeyIIFTYPE), compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint16(unix.ARPHRD_ETHER)),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6})
}
