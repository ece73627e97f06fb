package manifest

import (
	"net/netip"
	"slices"

	yaml "go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/reflect/protoreflect"

	capsulev1 "capsule/api/capsule/v1"
)

// The network of a workload is one field of a manifest and two of the message:
// "network: MODE", or "network: {mode: MODE, lan: deny}" where lan is said.
const (
	fieldNetwork = "network"
	fieldMode    = "mode"
	fieldLAN     = "lan"
)

const (
	networkBridge = "bridge"
	networkHost   = "host"
	networkNone   = "none"

	lanAllow = "allow"
	lanDeny  = "deny"

	sourceAny = "any"
	sourceLAN = "lan"
)

var (
	networks = []string{networkBridge, networkHost, networkNone}
	lans     = []string{lanAllow, lanDeny}
)

// isNetwork tells the field that is written with another one.
func isNetwork(f protoreflect.FieldDescriptor) bool {
	return f.JSONName() == fieldNetwork && f.Parent() == (*capsulev1.WorkloadSpec)(nil).ProtoReflect().Descriptor()
}

// isWithinNetwork tells the field that a manifest has within network.
func isWithinNetwork(f protoreflect.FieldDescriptor) bool {
	return f.JSONName() == fieldLAN && f.Parent() == (*capsulev1.WorkloadSpec)(nil).ProtoReflect().Descriptor()
}

// network reads the fields of a network.
func (d *document) network(spec protoreflect.Message, n *yaml.Node) {
	d.at[fieldNetwork] = n
	fields := spec.Descriptor().Fields()
	d.eachKey(n, func(key, value *yaml.Node) {
		at := fieldNetwork + "." + key.Value
		switch key.Value {
		case fieldMode:
			d.field(spec, fields.ByJSONName(fieldNetwork), value, at)
		case fieldLAN:
			d.field(spec, fields.ByJSONName(fieldLAN), value, at)
		default:
			d.fail(key, "unknown field %q; %s", clip(key.Value), suggest(key.Value, []string{fieldMode, fieldLAN}))
		}
	})
}

// network writes it.
func (e *encoder) network(m protoreflect.Message, indent int) {
	s := m.Interface().(*capsulev1.WorkloadSpec)
	switch {
	case s.GetLan() != "":
		e.line(indent, fieldNetwork+":")
		if s.GetNetwork() != "" {
			e.line(indent+1, fieldMode+": "+scalar(s.GetNetwork()))
		}
		e.line(indent+1, fieldLAN+": "+scalar(s.GetLan()))
	case s.GetNetwork() != "":
		e.line(indent, fieldNetwork+": "+scalar(s.GetNetwork()))
	}
}

func (c *check) network(s *capsulev1.WorkloadSpec) {
	n := s.GetNetwork()
	if n != "" && !slices.Contains(networks, n) {
		c.add(fieldNetwork+"."+fieldMode, "unknown network %q; %s", clip(n), suggest(n, networks))
		return
	}
	if n == networkHost && c.microVM {
		c.add(fieldNetwork+"."+fieldMode, "network \"host\": a microVM has its own kernel and cannot share the capsule's network; use bridge")
	}
	switch lan := s.GetLan(); {
	case lan != "" && !slices.Contains(lans, lan):
		c.add(fieldNetwork+"."+fieldLAN, "network.lan: unknown word %q; %s", clip(lan), suggest(lan, lans))
	case lan == lanDeny && n == networkHost:
		c.add(fieldNetwork+"."+fieldLAN, "network.lan: with network \"host\" the workload is the capsule itself on the LAN; use bridge")
	case lan == lanDeny && n == networkNone:
		c.add(fieldNetwork+"."+fieldLAN, "network.lan: with network \"none\" the workload reaches nothing at all; remove it")
	}
}

func (c *check) ports(s *capsulev1.WorkloadSpec) {
	ports := s.GetPorts()
	if len(ports) > 0 && s.GetNetwork() == networkNone {
		c.add("ports", "ports can't be published with network \"none\"")
		return
	}
	if len(ports) > portsMax {
		c.add("ports", "more than %d ports", portsMax)
		return
	}
	shifted := uint32(0)
	for i, p := range ports {
		at := index("ports", i)
		c.port(at, p)
		if p.GetHostPort() != p.GetPort() {
			shifted += lastPort(p.GetHostPort(), p.GetHostPortEnd()) - p.GetHostPort()
			if s.GetNetwork() == networkHost {
				c.add(at, "%s: with network \"host\" the workload's ports are the capsule's own: want port %d, the same as hostPort", at, p.GetHostPort())
			}
		}
		for j, other := range ports[:i] {
			if samePort(p, other) {
				c.add(at, "%s publishes %s, which %s does already", at, published(p), index("ports", j))
				break
			}
		}
	}
	if shifted > shiftedMax {
		c.add("ports", "more than %d ports are in ranges that lead to other numbers; want a range that leads to itself", shiftedMax)
	}
}

func (c *check) port(at string, p *capsulev1.Port) {
	found := len(c.found)
	for _, n := range []struct {
		name       string
		first, end uint32
	}{{"hostPort", p.GetHostPort(), p.GetHostPortEnd()}, {"port", p.GetPort(), p.GetPortEnd()}} {
		if n.first < 1 || n.first > maxPort {
			c.add(at+"."+n.name, "%s.%s must be within 1 and %d", at, n.name, maxPort)
		} else if n.end != 0 && (n.end < n.first || n.end > maxPort) {
			c.add(at+"."+n.name+"End", "%s.%sEnd must be within %d and %d", at, n.name, n.first, maxPort)
		}
	}
	if host, inside := length(p.GetHostPort(), p.GetHostPortEnd()), length(p.GetPort(), p.GetPortEnd()); len(c.found) == found && host != inside {
		c.add(at, "%s: %s are %d ports and %s are %d; want as many", at,
			formatPortRange(p.GetHostPort(), p.GetHostPortEnd()), host, formatPortRange(p.GetPort(), p.GetPortEnd()), inside)
	}
	if proto := p.GetProtocol(); proto != "" && proto != "tcp" && proto != "udp" {
		c.add(at+".protocol", "%s: unknown protocol %q; want tcp or udp", at, clip(proto))
	}
	if a := p.GetAddress(); a != "" {
		addr, err := netip.ParseAddr(a)
		if err != nil || addr.Zone() != "" || addr.IsMulticast() || addr.Is4In6() {
			c.add(at+".address", "%s: %q is no address of a capsule", at, clip(a))
		}
	}
	c.source(at, p)
	if p.GetHostPort() <= apiPort && apiPort <= lastPort(p.GetHostPort(), p.GetHostPortEnd()) && protocol(p) == "tcp" {
		c.add(at, "%s: port %d/tcp is the capsule's own API", at, apiPort)
	}
}

// source checks who may connect.
func (c *check) source(at string, p *capsulev1.Port) {
	from := p.GetFrom()
	if from == "" || from == sourceAny || from == sourceLAN {
		return
	}
	at += ".from"
	net, ok := parseSource(from)
	switch a, err := netip.ParseAddr(p.GetAddress()); {
	case !ok:
		c.add(at, "%s: %q is none of any, lan, an address such as 192.168.1.7 or a network such as 192.168.1.0/24", at, clip(from))
	case net != net.Masked():
		c.add(at, "%s: %s is an address within its network; want %s, or %s alone", at, from, net.Masked(), net.Addr())
	case err == nil && a.Is4() != net.Addr().Is4():
		c.add(at, "%s: nobody of %s can connect to %s, which is of the other family", at, from, a)
	}
}

// parseSource reads an address or a network.
func parseSource(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), a.Zone() == "" && !a.Is4In6()
	}
	p, err := netip.ParsePrefix(s)
	return p, err == nil && !p.Addr().Is4In6()
}

// sourceText is the one spelling of who may connect; "" is anybody.
func sourceText(s string) string {
	p, ok := parseSource(s)
	switch {
	case s == sourceAny:
		return ""
	case !ok:
		return s
	case p.IsSingleIP():
		return p.Addr().String()
	}
	return p.String()
}

// lastPort of a port or a range.
func lastPort(first, end uint32) uint32 {
	if end == 0 {
		return first
	}
	return end
}

func length(first, end uint32) uint32 { return lastPort(first, end) - first + 1 }

// defaultRange takes the end away of what is one port.
func defaultRange(p *capsulev1.Port) {
	if p.HostPortEnd == p.HostPort && p.PortEnd == p.Port {
		p.HostPortEnd, p.PortEnd = 0, 0
	}
}

func protocol(p *capsulev1.Port) string {
	if p.GetProtocol() == "" {
		return "tcp"
	}
	return p.GetProtocol()
}

// samePort tells whether two ports of one workload would meet on the capsule.
func samePort(a, b *capsulev1.Port) bool {
	if protocol(a) != protocol(b) || lastPort(a.GetHostPort(), a.GetHostPortEnd()) < b.GetHostPort() ||
		lastPort(b.GetHostPort(), b.GetHostPortEnd()) < a.GetHostPort() {
		return false
	}
	if a.GetAddress() == "" || b.GetAddress() == "" || a.GetAddress() == b.GetAddress() {
		return true
	}
	x, errX := netip.ParseAddr(a.GetAddress())
	y, errY := netip.ParseAddr(b.GetAddress())
	if errX != nil || errY != nil {
		return false
	}
	return x == y || (x.Is4() == y.Is4() && (x.IsUnspecified() || y.IsUnspecified()))
}

func published(p *capsulev1.Port) string {
	s := formatPortRange(p.GetHostPort(), p.GetHostPortEnd()) + "/" + protocol(p)
	if p.GetAddress() != "" {
		s += " on " + p.GetAddress()
	}
	return s
}
