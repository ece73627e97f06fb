package manifest

import (
	"net/netip"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	capsulev1 "capsule/api/capsule/v1"
)

// shortForm is a message written as one line of text.
type shortForm struct {
	form   string // for errors
	parse  func(string) (proto.Message, error)
	format func(proto.Message) string
	holds  func(proto.Message) bool // whether the text can say all of it
}

var shortForms = map[protoreflect.FullName]shortForm{
	(*capsulev1.Port)(nil).ProtoReflect().Descriptor().FullName(): {
		form:   portForm,
		parse:  func(s string) (proto.Message, error) { return parsePort(s) },
		format: func(m proto.Message) string { return formatPort(m.(*capsulev1.Port)) },
		holds:  func(m proto.Message) bool { return m.(*capsulev1.Port).GetFrom() == "" },
	},
	(*capsulev1.Mount)(nil).ProtoReflect().Descriptor().FullName(): {
		form:   mountForm,
		parse:  func(s string) (proto.Message, error) { return parseMount(s) },
		format: func(m proto.Message) string { return formatMount(m.(*capsulev1.Mount)) },
		holds:  func(m proto.Message) bool { return isShort(m.(*capsulev1.Mount)) },
	},
	(*capsulev1.Health)(nil).ProtoReflect().Descriptor().FullName(): {
		form:   healthNone,
		parse:  func(s string) (proto.Message, error) { return parseHealth(s) },
		format: func(proto.Message) string { return healthNone },
		holds:  func(m proto.Message) bool { return proto.Equal(m, &capsulev1.Health{None: true}) },
	},
}

const (
	portForm  = "[ADDRESS:]HOSTPORT[-END]:PORT[-END][/PROTOCOL]"
	mountForm = "VOLUME:/PATH[:ro]"
)

// parsePort reads "8080:80", "127.0.0.1:8080:80/udp", "[::1]:8080:80" or
// "8000-8100:8000-8100/udp".
func parsePort(s string) (*capsulev1.Port, error) {
	p := &capsulev1.Port{}
	rest, protocol, hasProtocol := strings.Cut(s, "/")
	if hasProtocol {
		if protocol == "" {
			return nil, invalid("%q: protocol is missing after \"/\"", clip(s))
		}
		p.Protocol = protocol
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return nil, invalid("%q: want %q", clip(s), portForm)
	}
	host, port := rest[:i], rest[i+1:]
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		address := host[:i]
		host = host[i+1:]
		bare := strings.TrimSuffix(strings.TrimPrefix(address, "["), "]")
		addr, err := netip.ParseAddr(bare)
		if err != nil || (addr.Is6() != (address != bare)) || (address != bare && address != "["+bare+"]") {
			return nil, invalid("%q: %q is no address; IPv6 stands in brackets", clip(s), clip(address))
		}
		p.Address = bare
	}
	var err error
	if p.HostPort, p.HostPortEnd, err = parsePortRange(host); err != nil {
		return nil, err
	}
	p.Port, p.PortEnd, err = parsePortRange(port)
	return p, err
}

// parsePortRange reads "80", with no end, or "8000-8100".
func parsePortRange(s string) (first, end uint32, err error) {
	last := ""
	if i := strings.IndexByte(s, '-'); i > 0 {
		s, last = s[:i], s[i+1:]
		if end, err = parsePortNumber(last); err != nil {
			return 0, 0, err
		}
	}
	first, err = parsePortNumber(s)
	return first, end, err
}

func parsePortNumber(s string) (uint32, error) {
	if !decimal.MatchString(s) {
		return 0, invalid("want a port as a decimal number, found %q", clip(s))
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 1 || n > maxPort {
		return 0, invalid("port %s is not within 1 to %d", clip(s), maxPort)
	}
	return uint32(n), nil
}

func formatPort(p *capsulev1.Port) string {
	s := formatPortRange(p.GetHostPort(), p.GetHostPortEnd()) + ":" + formatPortRange(p.GetPort(), p.GetPortEnd())
	if a := p.GetAddress(); strings.Contains(a, ":") {
		s = "[" + a + "]:" + s
	} else if a != "" {
		s = a + ":" + s
	}
	if p.GetProtocol() != "" && p.GetProtocol() != "tcp" {
		s += "/" + p.GetProtocol()
	}
	return s
}

func formatPortRange(first, end uint32) string {
	s := strconv.Itoa(int(first))
	if end != 0 {
		s += "-" + strconv.Itoa(int(end))
	}
	return s
}

// parseMount reads "data:/var/lib/data" or "data:/etc/x:ro".
func parseMount(s string) (*capsulev1.Mount, error) {
	volume, path, ok := strings.Cut(s, ":")
	if !ok || volume == "" {
		return nil, invalid("%q: want %q", clip(s), mountForm)
	}
	m := &capsulev1.Mount{Volume: volume}
	m.Path, m.ReadOnly = strings.CutSuffix(path, ":ro")
	if !m.ReadOnly {
		m.Path = strings.TrimSuffix(m.Path, ":rw")
	}
	if m.Path == "" {
		return nil, invalid("%q: want %q", clip(s), mountForm)
	}
	if _, rest, more := strings.Cut(m.Path, ":"); more {
		return nil, invalid("%q: %q can't be said in short; want %q, or fields", clip(s), clip(rest), mountForm)
	}
	return m, nil
}

// isShort tells a mount that the short form says all of.
func isShort(m *capsulev1.Mount) bool {
	copies := m.CopyImageContent == nil || *m.CopyImageContent
	return copies && !m.GetShared() && m.GetVolume() != "" && m.GetPath() != "" && !strings.Contains(m.GetPath(), ":")
}

func formatMount(m *capsulev1.Mount) string {
	s := m.GetVolume() + ":" + m.GetPath()
	if m.GetReadOnly() {
		s += ":ro"
	}
	return s
}
