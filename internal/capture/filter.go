package capture

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Bounds of a filter.
const (
	filterMax       = 1024 // characters
	depthMax        = 32   // parentheses and "not" within each other
	instructionsMax = 4096 // the kernel's own, BPF_MAXINSNS
	// accepted is what a filter gives for a packet that it takes: all bytes of it.
	accepted = 1 << 18
)

// Offsets in an Ethernet frame (IEEE 802.3), and of IPv4 (RFC 791), IPv6 (RFC 8200)
// and ARP (RFC 826) in it.
const (
	atEtherType = 12
	atIPv4      = 14
	atProtocol4 = 23
	atFragment4 = 20
	atSource4   = 26
	atTarget4   = 30
	atNext6     = 20
	atSource6   = 22
	atTarget6   = 38
	atPorts6    = 54
	atSourceARP = 28
	atTargetARP = 38
)

// A node is a filter, or a part of one.
type node interface {
	emit(a *assembler, yes, no label)
}

// all and some hold when each, or one, of their parts does; inverse when its part
// does not.
type (
	all     []node
	some    []node
	inverse struct{ of node }
)

// test loads something and compares it.
type test struct {
	load []bpf.Instruction
	cond bpf.JumpTest
	val  uint32
}

// label is a place in a program that is being made.
type label int

// assembler makes a program. Jumps name labels until all have their places.
type assembler struct {
	code   []bpf.Instruction
	jumps  map[int]label // of the bpf.Jump at that place
	places []int         // of labels
}

func (a *assembler) label() label {
	a.places = append(a.places, 0)
	return label(len(a.places) - 1)
}

func (a *assembler) mark(l label) { a.places[l] = len(a.code) }

func (a *assembler) jump(to label) {
	a.jumps[len(a.code)] = to
	a.code = append(a.code, bpf.Jump{})
}

func (t test) emit(a *assembler, yes, no label) {
	a.code = append(a.code, t.load...)
	// Both ways by a long jump: conditional ones only reach 255 instructions.
	a.code = append(a.code, bpf.JumpIf{Cond: t.cond, Val: t.val, SkipTrue: 0, SkipFalse: 1})
	a.jump(yes)
	a.jump(no)
}

func (n inverse) emit(a *assembler, yes, no label) { n.of.emit(a, no, yes) }

func (n all) emit(a *assembler, yes, no label) {
	for _, part := range n {
		next := a.label()
		part.emit(a, next, no)
		a.mark(next)
	}
	a.jump(yes)
}

func (n some) emit(a *assembler, yes, no label) {
	for _, part := range n {
		next := a.label()
		part.emit(a, yes, next)
		a.mark(next)
	}
	a.jump(no)
}

// program is what the kernel runs for each packet of an Ethernet link.
func program(n node) ([]bpf.Instruction, error) {
	a := &assembler{jumps: map[int]label{}}
	yes, no := a.label(), a.label()
	n.emit(a, yes, no)
	a.mark(yes)
	a.code = append(a.code, bpf.RetConstant{Val: accepted})
	a.mark(no)
	a.code = append(a.code, bpf.RetConstant{Val: 0})
	for at, to := range a.jumps {
		a.code[at] = bpf.Jump{Skip: uint32(a.places[to] - at - 1)} //nolint:gosec // forward, within a program
	}
	if len(a.code) > instructionsMax {
		return nil, fmt.Errorf("the filter is too long for the kernel: leave a part of it out: %w", errdefs.ErrInvalidArgument)
	}
	return a.code, nil
}

func half(off uint32) []bpf.Instruction {
	return []bpf.Instruction{bpf.LoadAbsolute{Off: off, Size: 2}}
}
func octet(off uint32) []bpf.Instruction {
	return []bpf.Instruction{bpf.LoadAbsolute{Off: off, Size: 1}}
}

func equal(load []bpf.Instruction, val uint32) test { return test{load, bpf.JumpEqual, val} }

func etherType(t uint32) node { return equal(half(atEtherType), t) }

func ipv4() node { return etherType(unix.ETH_P_IP) }
func ipv6() node { return etherType(unix.ETH_P_IPV6) }
func arp() node  { return etherType(unix.ETH_P_ARP) }

// protocol is what IPv4 or IPv6 carry; of IPv6 without extension headers, as tcpdump
// has it.
func protocol(number uint32) node {
	return some{all{ipv4(), equal(octet(atProtocol4), number)}, all{ipv6(), equal(octet(atNext6), number)}}
}

// direction of what is compared; the zero value is either.
type direction int

const (
	either direction = iota
	source
	target
)

// sides gives the tests of the directions that are meant.
func (d direction) sides(at func(source bool) node) node {
	switch d {
	case source:
		return at(true)
	case target:
		return at(false)
	}
	return some{at(true), at(false)}
}

// network is who sends or receives: also in ARP, as that is how IPv4 begins.
func network(p netip.Prefix, d direction) node {
	if p.Addr().Is4() {
		in := func(source, target uint32) func(bool) node {
			return func(s bool) node {
				if s {
					return masked(source, p.Addr().AsSlice(), p.Bits())
				}
				return masked(target, p.Addr().AsSlice(), p.Bits())
			}
		}
		return some{all{ipv4(), d.sides(in(atSource4, atTarget4))}, all{arp(), d.sides(in(atSourceARP, atTargetARP))}}
	}
	return all{ipv6(), d.sides(func(s bool) node {
		if s {
			return masked(atSource6, p.Addr().AsSlice(), p.Bits())
		}
		return masked(atTarget6, p.Addr().AsSlice(), p.Bits())
	})}
}

// masked compares the first bits of an address, four bytes at a time.
func masked(at uint32, address []byte, bits int) node {
	var n all
	for i := 0; i < len(address) && bits > 0; i, bits = i+4, bits-32 {
		mask := ^uint32(0) << max(0, 32-bits)
		load := []bpf.Instruction{bpf.LoadAbsolute{Off: at + uint32(i), Size: 4}} //nolint:gosec // below 16
		if mask != ^uint32(0) {
			load = append(load, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask})
		}
		n = append(n, equal(load, binary.BigEndian.Uint32(address[i:])&mask))
	}
	return n // none of 0 bits: it holds
}

// withPorts are the protocols that begin with two ports.
var withPorts = []uint32{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP}

// ports are those from first to last.
func ports(first, last uint32, d direction) node {
	carried := func(load []bpf.Instruction) node {
		var n some
		for _, p := range withPorts {
			n = append(n, equal(load, p))
		}
		return n
	}
	within := func(load []bpf.Instruction) node {
		if first == last {
			return equal(load, first)
		}
		return all{test{load, bpf.JumpGreaterOrEqual, first}, test{load, bpf.JumpLessOrEqual, last}}
	}
	in4 := d.sides(func(s bool) node {
		off := uint32(atIPv4 + 2)
		if s {
			off = atIPv4
		}
		return within([]bpf.Instruction{bpf.LoadMemShift{Off: atIPv4}, bpf.LoadIndirect{Off: off, Size: 2}})
	})
	in6 := d.sides(func(s bool) node {
		if s {
			return within(half(atPorts6))
		}
		return within(half(atPorts6 + 2))
	})
	// Later pieces of a packet have no ports.
	begins := test{half(atFragment4), bpf.JumpBitsNotSet, 0x1fff}
	return some{
		all{ipv4(), carried(octet(atProtocol4)), begins, in4},
		all{ipv6(), carried(octet(atNext6)), in6},
	}
}

// connection is one of TCP.
func connection(a, b netip.AddrPort) node {
	one := func(p netip.AddrPort, d direction) node {
		addr := p.Addr().Unmap().WithZone("")
		return all{network(netip.PrefixFrom(addr, addr.BitLen()), d), ports(uint32(p.Port()), uint32(p.Port()), d)}
	}
	return all{protocol(unix.IPPROTO_TCP), some{all{one(a, source), one(b, target)}, all{one(b, source), one(a, target)}}}
}

// parseFilter reads a subset of pcap-filter(7):
//
//	or      = and { ("or" | "||") and }
//	and     = not { ["and" | "&&"] not }
//	not     = ("not" | "!") not | "(" or ")" | what
//	what    = [ip|ip6|arp|tcp|udp|icmp|icmp6] [src|dst] [host|net|port|portrange] [VALUE]
//
// Something of what must be there. An empty text takes all.
func parseFilter(text string) (node, error) {
	if len(text) > filterMax {
		return nil, fmt.Errorf("a filter has at most %d characters, not %d: %w", filterMax, len(text), errdefs.ErrInvalidArgument)
	}
	p := &parser{words: filterWords(text)}
	if len(p.words) == 0 {
		return all{}, nil
	}
	n, err := p.or(0)
	if err == nil && p.next() != "" {
		err = fmt.Errorf("unexpected %q", p.next())
	}
	if err != nil {
		return nil, fmt.Errorf("filter %q: %w; it is made of [tcp|udp|icmp|icmp6|arp|ip|ip6] [src|dst] [host|net|port|portrange] VALUE, \"and\", \"or\", \"not\" and parentheses: %w",
			text, err, errdefs.ErrInvalidArgument)
	}
	return n, nil
}

// filterWords splits at spaces, and around signs.
func filterWords(text string) []string {
	for _, sign := range []string{"(", ")", "!", "&&", "||"} {
		text = strings.ReplaceAll(text, sign, " "+sign+" ")
	}
	return strings.Fields(text)
}

type parser struct{ words []string }

// next is the word to come, "" at the end.
func (p *parser) next() string {
	if len(p.words) == 0 {
		return ""
	}
	return p.words[0]
}

// take goes on if the next word is one of these.
func (p *parser) take(words ...string) (string, bool) {
	for _, w := range words {
		if len(p.words) > 0 && p.words[0] == w {
			p.words = p.words[1:]
			return w, true
		}
	}
	return "", false
}

func (p *parser) or(depth int) (node, error) {
	var n some
	for {
		part, err := p.and(depth)
		if err != nil {
			return nil, err
		}
		n = append(n, part)
		if _, more := p.take("or", "||"); !more {
			return n, nil
		}
	}
}

func (p *parser) and(depth int) (node, error) {
	var n all
	for {
		part, err := p.not(depth)
		if err != nil {
			return nil, err
		}
		n = append(n, part)
		if _, more := p.take("and", "&&"); more {
			continue
		}
		switch p.next() {
		case "", ")", "or", "||":
			return n, nil
		}
	}
}

func (p *parser) not(depth int) (node, error) {
	if depth > depthMax {
		return nil, fmt.Errorf("more than %d parts within each other", depthMax)
	}
	if _, ok := p.take("not", "!"); ok {
		n, err := p.not(depth + 1)
		return inverse{n}, err
	}
	if _, ok := p.take("("); ok {
		n, err := p.or(depth + 1)
		if _, closed := p.take(")"); err == nil && !closed {
			err = fmt.Errorf("a parenthesis is not closed")
		}
		return n, err
	}
	return p.what()
}

// carriers are the words for what a packet is.
var carriers = map[string]func() node{
	"ip": ipv4, "ip6": ipv6, "arp": arp,
	"tcp":   func() node { return protocol(unix.IPPROTO_TCP) },
	"udp":   func() node { return protocol(unix.IPPROTO_UDP) },
	"icmp":  func() node { return all{ipv4(), equal(octet(atProtocol4), unix.IPPROTO_ICMP)} },
	"icmp6": func() node { return all{ipv6(), equal(octet(atNext6), unix.IPPROTO_ICMPV6)} },
}

func (p *parser) what() (node, error) {
	var n all
	if carrier := carriers[p.next()]; carrier != nil {
		n = append(n, carrier())
		p.words = p.words[1:]
	}
	word, _ := p.take("src", "dst")
	d := map[string]direction{"": either, "src": source, "dst": target}[word]
	kind, typed := p.take("host", "net", "port", "portrange")
	if !typed && word == "" && len(n) > 0 && !isAddress(p.next()) {
		return n, nil // "tcp" alone
	}
	if p.next() == "" {
		return nil, fmt.Errorf("it ends too early")
	}
	value := p.next()
	if !typed && !isAddress(value) {
		return nil, fmt.Errorf("unexpected %q", value)
	}
	p.words = p.words[1:]
	compared, err := comparison(kind, value, d)
	return append(n, compared), err
}

func isAddress(word string) bool {
	_, err := netip.ParseAddr(word)
	return err == nil
}

func comparison(kind, value string, d direction) (node, error) {
	switch kind {
	case "port", "portrange":
		first, last, ranged := strings.Cut(value, "-")
		if !ranged {
			last = first
		}
		a, errA := strconv.ParseUint(first, 10, 16)
		b, errB := strconv.ParseUint(last, 10, 16)
		if errA != nil || errB != nil || a > b || ranged != (kind == "portrange") {
			return nil, fmt.Errorf("%q is no %s: want a number, or FIRST-LAST after \"portrange\"", value, kind)
		}
		return ports(uint32(a), uint32(b), d), nil
	case "net":
		prefix, err := netip.ParsePrefix(value)
		if err != nil {
			return nil, fmt.Errorf("%q is no network: want ADDRESS/BITS", value)
		}
		return network(prefix.Masked(), d), nil
	}
	addr, err := netip.ParseAddr(value)
	if err != nil || addr.Zone() != "" {
		return nil, fmt.Errorf("%q is no address", value)
	}
	addr = addr.Unmap()
	return network(netip.PrefixFrom(addr, addr.BitLen()), d), nil
}
