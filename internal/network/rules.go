package network

import (
	"fmt"
	"net/netip"
	"slices"
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
	LAN    []netip.Prefix // what the uplinks reach without a router
	Denied []addresses    // workloads that may not reach it
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
	set   *set // of the expr.Lookup among them; its elements stand behind the text
}

// String is the whole text.
func (t term) String() string {
	if t.set == nil {
		return t.text
	}
	return t.text + " { " + strings.Join(t.set.words(), ", ") + " }"
}

// ruleset is the whole table, generated from desired state.
func ruleset(d desired) []chain {
	return []chain{
		{Name: "guard", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting, Priority: *nftables.ChainPriorityRaw,
			Rules: guardRules(d)},
		{Name: "input", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput, Priority: *nftables.ChainPriorityFilter, Drop: true,
			Rules: inputRules(d)},
		{Name: "forward", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward, Priority: *nftables.ChainPriorityFilter, Drop: true,
			Rules: forwardRules(d)},
		{Name: "published", Rules: publishedRules(d)},
		{Name: "limited", Rules: limitedRules(d)},
		{Name: "prerouting", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPrerouting, Priority: *nftables.ChainPriorityNATDest,
			Rules: append(ownDNS(d), rule{jump("published")}, rule{from(d.Bridge), jump("limited")})},
		{Name: "output", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookOutput, Priority: *nftables.ChainPriorityNATDest,
			Rules: append(ownDNS(d), rule{jump("published")}, rule{jump("limited")})},
		{Name: "postrouting", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPostrouting, Priority: *nftables.ChainPriorityNATSource,
			Rules: postroutingRules(d)},
	}
}

// guardRules keep loopback addresses on the loopback: the bridge accepts them
// (route_localnet) only so that the box reaches published ports through
// 127.0.0.1. Nor does anybody outside pass for a workload, or send to the bridge's
// own addresses: what leads there is published on those of the uplinks.
func guardRules(d desired) []rule {
	rules := []rule{
		{notFrom("lo"), saddrOrDaddr("daddr", loopback4), drop()},
		{notFrom("lo"), saddrOrDaddr("saddr", loopback4), drop()},
	}
	for _, net := range d.nets() {
		if slices.ContainsFunc(d.LAN, net.Overlaps) {
			continue // neighbours have such addresses, too
		}
		for _, field := range []string{"saddr", "daddr"} {
			rules = append(rules, rule{notFrom("lo"), notFrom(d.Bridge), saddrOrDaddr(field, net), drop()})
		}
	}
	return rules
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
	for _, g := range d.groups(true) {
		open := append(g.at(false), dports(g.protocol, g.ports), accept())
		if !g.from.anybody() {
			rules = append(rules, append(rule{from(d.Bridge)}, open...))
		}
		if source, any := d.source(g.from, g.v4); any {
			rules = append(rules, append(source, open...))
		}
	}
	return append(rules,
		rule{from(d.Bridge), drop()},
		rule{dport("tcp", apiPort), accept()},
		rule{dport("udp", mdnsPort), accept()},
		rule{dport("udp", dhcpPort), accept()},
	)
}

// forwardRules: who is denied the LAN answers those who came from there to a
// port of his, and speaks to nobody first.
func forwardRules(d desired) []rule {
	rules := []rule{
		{ctState("established,related", expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept()},
		{ctState("invalid", expr.CtStateBitINVALID), drop()},
		{from(d.Bridge), accept()},
		{out(d.Bridge), ctStatusDNAT(), accept()},
	}
	if len(d.Denied) == 0 {
		return rules
	}
	var denied []rule
	for _, v4 := range d.families() {
		denied = append(denied, rule{from(d.Bridge), notOut(d.Bridge), ctOriginal(), etherFrom(d.Denied),
			addrIn("daddr", v4, ofFamily(v4, disjoint(throughNAT64(slices.Concat(private, d.LAN))))), drop()})
	}
	return append(denied, rules...)
}

// private are the networks that are somebody's own, by RFC 1918, 6598, 3927,
// 4193 and 4291, and where a translator to these may be, by RFC 8215.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("fc00::/7"),
	linkLocal6,
}

// throughNAT64 adds by what addresses the IPv4 ones are reached from a network of
// IPv6 alone (RFC 6052, 2.1), for a router that lets it.
func throughNAT64(nets []netip.Prefix) []netip.Prefix {
	all := slices.Clone(nets)
	for _, p := range nets {
		if !p.Addr().Is4() {
			continue
		}
		a, v4 := nat64.Addr().As16(), p.Addr().As4()
		copy(a[12:], v4[:])
		all = append(all, netip.PrefixFrom(netip.AddrFrom16(a), nat64.Bits()+p.Bits()))
	}
	return all
}

// nat64 is the well-known prefix of translators.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// linkLocal6 is on-link everywhere.
var linkLocal6 = netip.MustParsePrefix("fe80::/10")

// ownDNS leaves DNS on the bridge's own address alone, so that a workload may
// publish port 53.
func ownDNS(d desired) []rule {
	var rules []rule
	for _, gw := range d.gateways() {
		rules = append(rules,
			rule{addr("daddr", gw), dport("udp", dnsPort), accept()},
			rule{addr("daddr", gw), dport("tcp", dnsPort), accept()})
	}
	return rules
}

// publishedRules send what comes to a published port to its workload, from all
// who may from outside.
func publishedRules(d desired) []rule {
	var rules []rule
	for _, g := range d.groups(false) {
		if source, any := d.source(g.from, g.v4); any {
			rules = append(rules, append(source, append(g.at(true), g.dnat())...))
		}
	}
	return rules
}

// limitedRules do so with the ports that not everybody may connect to, for the
// box itself and its workloads.
func limitedRules(d desired) []rule {
	var rules []rule
	for _, g := range d.groups(false) {
		if !g.from.anybody() {
			rules = append(rules, append(g.at(true), g.dnat()))
		}
	}
	return rules
}

// source matches who may connect from outside, by one family; false is nobody.
func (d desired) source(s Source, v4 bool) (rule, bool) {
	switch {
	case s.anybody():
		return nil, true
	case !s.LAN:
		return rule{saddrOrDaddr("saddr", s.Prefix)}, s.Prefix.Addr().Is4() == v4
	}
	lan := ofFamily(v4, disjoint(d.lan()))
	if len(lan) == 0 {
		return nil, false
	}
	return rule{addrIn("saddr", v4, lan)}, true
}

// lan are all networks whose hosts are neighbours.
func (d desired) lan() []netip.Prefix { return append([]netip.Prefix{linkLocal6}, d.LAN...) }

// families says for each that is in use whether it is IPv4.
func (d desired) families() []bool {
	if d.IPv6 {
		return []bool{true, false}
	}
	return []bool{true}
}

func (d desired) nets() []netip.Prefix {
	if d.IPv6 {
		return []netip.Prefix{d.Net.IPv4, d.Net.IPv6}
	}
	return []netip.Prefix{d.Net.IPv4}
}

// postroutingRules hide workloads behind the capsule's address, outside and,
// for what returns to the bridge by a published port, inside: else the answer
// would go straight to the asking workload, which knows nothing of its sender.
func postroutingRules(d desired) []rule {
	own := []netip.Prefix{loopback4, loopback6}
	rules := []rule{{out("lo"), accept()}}
	for i, net := range d.nets() {
		rules = append(rules,
			rule{out(d.Bridge), saddrOrDaddr("saddr", net), ctStatusDNAT(), masquerade()},
			rule{out(d.Bridge), saddrOrDaddr("saddr", own[i]), masquerade()},
			rule{notOut(d.Bridge), saddrOrDaddr("saddr", net), masquerade()})
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
				words[i] = t.String()
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
	return term{text: fmt.Sprintf("%s %q", word, name), exprs: []expr.Any{meta(key), compare(op, ifname(name))}}
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
	return term{text: "meta nfproto " + word, exprs: []expr.Any{meta(expr.MetaKeyNFPROTO), compare(expr.CmpOpEq, []byte{proto})}}
}

func l4proto(name string, proto byte) term {
	return term{text: "meta l4proto " + name, exprs: []expr.Any{meta(expr.MetaKeyL4PROTO), compare(expr.CmpOpEq, []byte{proto})}}
}

func dport(protocol string, port uint16) term {
	return term{text: fmt.Sprintf("%s dport %d", protocol, port),
		exprs: append(loadPort(protocol), compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(port)))}
}

// loadPort loads the port that a packet of the protocol is for.
func loadPort(protocol string) []expr.Any {
	proto := byte(unix.IPPROTO_TCP)
	if protocol == "udp" {
		proto = unix.IPPROTO_UDP
	}
	return append(l4proto(protocol, proto).exprs, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
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
	return term{text: fmt.Sprintf("%s %s %s", headerName(a.Is4()), field, a),
		exprs: append(family(a.Is4()).exprs, addressField(field, a.Is4()), compare(expr.CmpOpEq, a.AsSlice()))}
}

func saddrOrDaddr(field string, p netip.Prefix) term {
	a := p.Masked().Addr()
	size := len(a.AsSlice())
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return term{text: fmt.Sprintf("%s %s %s", headerName(a.Is4()), field, p.Masked()),
		exprs: append(family(a.Is4()).exprs, addressField(field, a.Is4()),
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
	return term{text: "ct state " + text, exprs: bits(expr.CtKeySTATE, mask)}
}

// statusDNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const statusDNAT = 1 << 5

func ctStatusDNAT() term {
	return term{text: "ct status dnat", exprs: bits(expr.CtKeySTATUS, statusDNAT)}
}

// ctOriginal holds for what the side sends that began.
func ctOriginal() term {
	return term{text: "ct direction original", exprs: []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, compare(expr.CmpOpEq, []byte{0})}}
}

func toLocal() term {
	return term{text: "fib daddr type local", exprs: []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL))}}
}

func verdict(text string, kind expr.VerdictKind, to string) term {
	return term{text: text, exprs: []expr.Any{&expr.Verdict{Kind: kind, Chain: to}}}
}

func accept() term        { return verdict("accept", expr.VerdictAccept, "") }
func drop() term          { return verdict("drop", expr.VerdictDrop, "") }
func jump(to string) term { return verdict("jump "+to, expr.VerdictJump, to) }

func masquerade() term { return term{text: "masquerade", exprs: []expr.Any{&expr.Masq{}}} }
