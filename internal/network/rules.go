package network

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Ports that stay open on the capsule itself.
const (
	apiPort  = 50000 // TCP, the capsule's own API
	dnsPort  = 53    // for workloads, on the bridge only
	mdnsPort = 5353  // UDP
	dhcpPort = 68    // UDP, answers to the DHCP client
)

// tableName is the one nftables table, of family inet.
const tableName = "capsule"

// desired is all that the table depends on.
type desired struct {
	Bridge string
	Net    Subnets
	IPv6   bool // the kernel has IPv6
	Ports  []forward
}

// forward is one published port with the addresses behind it.
type forward struct {
	Published
	To []netip.Addr // of the workload; unused for a port of a host workload
}

// chain is a chain of the table. The set of chains and their hooks never
// change, only their rules: a chain that is replaced would drop what passes
// between its two lives.
type chain struct {
	Name     string
	Type     nftables.ChainType // "" for a chain that is only jumped to
	Hook     *nftables.ChainHook
	Priority nftables.ChainPriority
	Drop     bool // policy
	Rules    []rule
}

// rule is a list of terms; all matches must hold for the last one to act.
type rule []term

// term is one piece of a rule, as text of nft(8) and as the kernel wants it.
type term struct {
	text  string
	exprs []expr.Any
}

// ruleset is the whole table, generated from desired state.
func ruleset(d desired) []chain {
	return []chain{
		{Name: "guard", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting, Priority: *nftables.ChainPriorityRaw,
			Rules: guardRules()},
		{Name: "input", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput, Priority: *nftables.ChainPriorityFilter, Drop: true,
			Rules: inputRules(d)},
		{Name: "forward", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward, Priority: *nftables.ChainPriorityFilter, Drop: true,
			Rules: forwardRules(d)},
		{Name: "published", Rules: publishedRules(d)},
		{Name: "prerouting", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPrerouting, Priority: *nftables.ChainPriorityNATDest,
			Rules: []rule{{jump("published")}}},
		{Name: "output", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookOutput, Priority: *nftables.ChainPriorityNATDest,
			Rules: []rule{{jump("published")}}},
		{Name: "postrouting", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPostrouting, Priority: *nftables.ChainPriorityNATSource,
			Rules: postroutingRules(d)},
	}
}

// guardRules keep loopback addresses on the loopback: the bridge accepts them
// (route_localnet) only so that the box reaches published ports through
// 127.0.0.1.
func guardRules() []rule {
	return []rule{{notFrom("lo"), saddrOrDaddr("daddr", loopback4), drop()}}
}

func inputRules(d desired) []rule {
	rules := []rule{
		{from("lo"), accept()},
		{ctState("established,related", expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept()},
		{ctState("invalid", expr.CtStateBitINVALID), drop()},
		{l4proto("icmp", unix.IPPROTO_ICMP), accept()},
		{l4proto("ipv6-icmp", unix.IPPROTO_ICMPV6), accept()},
		{from(d.Bridge), dport("udp", dnsPort), accept()},
		{from(d.Bridge), dport("tcp", dnsPort), accept()},
	}
	for _, p := range d.Ports {
		if !p.Host {
			continue
		}
		for _, to := range destinations(p.Address, d.IPv6, false) {
			rules = append(rules, rule(append(to.terms, dport(p.Protocol, p.Port), accept())))
		}
	}
	return append(rules,
		rule{from(d.Bridge), drop()},
		rule{dport("tcp", apiPort), accept()},
		rule{dport("udp", mdnsPort), accept()},
		rule{dport("udp", dhcpPort), accept()},
	)
}

func forwardRules(d desired) []rule {
	return []rule{
		{ctState("established,related", expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept()},
		{ctState("invalid", expr.CtStateBitINVALID), drop()},
		{from(d.Bridge), accept()},
		{out(d.Bridge), ctStatusDNAT(), accept()},
	}
}

// publishedRules send what comes to a published port to its workload, wherever
// it comes from: the LAN, the box itself, a workload. DNS on the bridge's own
// address is never taken, so that a workload may publish port 53.
func publishedRules(d desired) []rule {
	var rules []rule
	for _, gw := range d.gateways() {
		rules = append(rules,
			rule{addr("daddr", gw), dport("udp", dnsPort), goBack()},
			rule{addr("daddr", gw), dport("tcp", dnsPort), goBack()})
	}
	for _, p := range d.Ports {
		if p.Host {
			continue
		}
		for _, at := range destinations(p.Address, d.IPv6, true) {
			for _, to := range p.To {
				if to.Is4() == at.v4 {
					rules = append(rules, rule(append(at.terms, dport(p.Protocol, p.Port), dnat(to, p.Target))))
				}
			}
		}
	}
	return rules
}

// postroutingRules hide workloads behind the capsule's address, outside and,
// for what returns to the bridge by a published port, inside: else the answer
// would go straight to the asking workload, which knows nothing of its sender.
func postroutingRules(d desired) []rule {
	nets := []netip.Prefix{d.Net.IPv4}
	own := []netip.Prefix{loopback4}
	if d.IPv6 {
		nets = append(nets, d.Net.IPv6)
		own = append(own, loopback6)
	}
	rules := []rule{{out("lo"), accept()}}
	for i := range nets {
		rules = append(rules,
			rule{out(d.Bridge), saddrOrDaddr("saddr", nets[i]), ctStatusDNAT(), masquerade()},
			rule{out(d.Bridge), saddrOrDaddr("saddr", own[i]), masquerade()},
			rule{notOut(d.Bridge), saddrOrDaddr("saddr", nets[i]), masquerade()})
	}
	return rules
}

func (d desired) gateways() []netip.Addr {
	gws := []netip.Addr{d.Net.Gateway4()}
	if d.IPv6 {
		gws = append(gws, d.Net.Gateway6())
	}
	return gws
}

// destination is what a packet to a published address looks like.
type destination struct {
	v4    bool
	terms []term
}

// destinations returns the packets that an address to publish on stands for:
// none is all addresses of both families, 0.0.0.0 and :: are all of one.
func destinations(a netip.Addr, ipv6, local bool) []destination {
	if a.IsValid() && !a.IsUnspecified() {
		if a.Is6() && !ipv6 {
			return nil
		}
		return []destination{{a.Is4(), []term{addr("daddr", a)}}}
	}
	var to []destination
	for _, v4 := range []bool{true, false} {
		if (!v4 && !ipv6) || (a.IsValid() && a.Is4() != v4) {
			continue
		}
		terms := []term{family(v4)}
		if local {
			terms = append(terms, toLocal())
		}
		to = append(to, destination{v4, terms})
	}
	return to
}

// render writes the table in the syntax of nft(8).
func render(chains []chain) string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", tableName)
	for _, c := range chains {
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if c.Hook != nil {
			policy := "accept"
			if c.Drop {
				policy = "drop"
			}
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy %s;\n", c.Type, hookName(*c.Hook), c.Priority, policy)
		}
		for _, r := range c.Rules {
			words := make([]string, len(r))
			for i, t := range r {
				words[i] = t.text
			}
			fmt.Fprintf(&b, "\t\t%s\n", strings.Join(words, " "))
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

func hookName(h nftables.ChainHook) string {
	return map[nftables.ChainHook]string{
		*nftables.ChainHookPrerouting:  "prerouting",
		*nftables.ChainHookInput:       "input",
		*nftables.ChainHookForward:     "forward",
		*nftables.ChainHookOutput:      "output",
		*nftables.ChainHookPostrouting: "postrouting",
	}[h]
}

func compare(op expr.CmpOp, data []byte) expr.Any { return &expr.Cmp{Op: op, Register: 1, Data: data} }

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }

// ifname pads a name of a link as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func link(word string, key expr.MetaKey, op expr.CmpOp, name string) term {
	return term{fmt.Sprintf("%s %q", word, name), []expr.Any{meta(key), compare(op, ifname(name))}}
}

func from(name string) term    { return link("iifname", expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func notFrom(name string) term { return link("iifname !=", expr.MetaKeyIIFNAME, expr.CmpOpNeq, name) }
func out(name string) term     { return link("oifname", expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }
func notOut(name string) term  { return link("oifname !=", expr.MetaKeyOIFNAME, expr.CmpOpNeq, name) }

func family(v4 bool) term {
	word, proto := "ipv6", byte(unix.NFPROTO_IPV6)
	if v4 {
		word, proto = "ipv4", unix.NFPROTO_IPV4
	}
	return term{"meta nfproto " + word, []expr.Any{meta(expr.MetaKeyNFPROTO), compare(expr.CmpOpEq, []byte{proto})}}
}

func l4proto(name string, proto byte) term {
	return term{"meta l4proto " + name, []expr.Any{meta(expr.MetaKeyL4PROTO), compare(expr.CmpOpEq, []byte{proto})}}
}

func dport(protocol string, port uint16) term {
	proto := byte(unix.IPPROTO_TCP)
	if protocol == "udp" {
		proto = unix.IPPROTO_UDP
	}
	return term{fmt.Sprintf("%s dport %d", protocol, port), append(l4proto(protocol, proto).exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(port)))}
}

// addressField loads "saddr" or "daddr" of the family's header.
func addressField(field string, v4 bool) expr.Any {
	p := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16}
	if v4 {
		p.Offset, p.Len = 12, 4
	}
	if field == "daddr" {
		p.Offset += p.Len
	}
	return p
}

func headerName(v4 bool) string {
	if v4 {
		return "ip"
	}
	return "ip6"
}

func addr(field string, a netip.Addr) term {
	return term{fmt.Sprintf("%s %s %s", headerName(a.Is4()), field, a),
		append(family(a.Is4()).exprs, addressField(field, a.Is4()), compare(expr.CmpOpEq, a.AsSlice()))}
}

func saddrOrDaddr(field string, p netip.Prefix) term {
	a := p.Masked().Addr()
	size := len(a.AsSlice())
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return term{fmt.Sprintf("%s %s %s", headerName(a.Is4()), field, p.Masked()),
		append(family(a.Is4()).exprs, addressField(field, a.Is4()),
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(size), Mask: mask, Xor: make([]byte, size)},
			compare(expr.CmpOpEq, a.AsSlice()))}
}

// bits holds when any of the bits of a conntrack value is set.
func bits(key expr.CtKey, mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		compare(expr.CmpOpNeq, make([]byte, 4)),
	}
}

func ctState(text string, mask uint32) term {
	return term{"ct state " + text, bits(expr.CtKeySTATE, mask)}
}

// statusDNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const statusDNAT = 1 << 5

func ctStatusDNAT() term { return term{"ct status dnat", bits(expr.CtKeySTATUS, statusDNAT)} }

func toLocal() term {
	return term{"fib daddr type local", []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL))}}
}

func verdict(text string, kind expr.VerdictKind, to string) term {
	return term{text, []expr.Any{&expr.Verdict{Kind: kind, Chain: to}}}
}

func accept() term        { return verdict("accept", expr.VerdictAccept, "") }
func drop() term          { return verdict("drop", expr.VerdictDrop, "") }
func goBack() term        { return verdict("return", expr.VerdictReturn, "") }
func jump(to string) term { return verdict("jump "+to, expr.VerdictJump, to) }

func masquerade() term { return term{"masquerade", []expr.Any{&expr.Masq{}}} }

func dnat(to netip.Addr, port uint16) term {
	proto := uint32(unix.NFPROTO_IPV6)
	if to.Is4() {
		proto = unix.NFPROTO_IPV4
	}
	return term{fmt.Sprintf("dnat %s to %s", headerName(to.Is4()), netip.AddrPortFrom(to, port)), []expr.Any{
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: proto, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}}
}
