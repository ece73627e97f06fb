package compose

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	capsulev1 "capsule/api/capsule/v1"
)

// apiPort over TCP is the capsule's own.
const apiPort = 50000

// ports maps what is published. Ranges come port by port from the library, and are
// joined again.
func (s *service) ports() {
	list := s.config.Ports
	written := s.where.items(s.at("ports"))
	var made []*capsulev1.Port
	for i, p := range list {
		path := s.at("ports")
		if written == len(list) {
			path = fmt.Sprintf("%s[%d]", path, i)
		}
		protocol := strings.ToLower(p.Protocol)
		if protocol != "" && protocol != "tcp" && protocol != "udp" {
			s.lose(path, "%d/%s is not published; only tcp and udp are", p.Target, protocol)
			continue
		}
		if protocol == "tcp" {
			protocol = ""
		}
		port := &capsulev1.Port{Port: p.Target, HostPort: p.Target, Protocol: protocol, Address: address(p.HostIP)}
		s.published(port, p.Published, path)
		if port.HostPort == apiPort && protocol == "" {
			s.lose(path, "port 50000/tcp is the capsule's own; left out: publish another one")
			continue
		}
		if s.try(&capsulev1.WorkloadSpec{}, path, func(w *capsulev1.WorkloadSpec) { w.Ports = []*capsulev1.Port{port} }) {
			made = append(made, port)
		}
	}
	if written < len(list) {
		made = joined(made)
	}
	s.spec.Ports = made
}

// published takes the capsule's port; Docker picks one of several, or any.
func (s *service) published(port *capsulev1.Port, text, path string) {
	begin, _, several := strings.Cut(text, "-")
	n, err := strconv.ParseUint(begin, 10, 16)
	switch {
	case text == "":
		s.lose(path, "no port of the machine is named, and Docker picks any; %d is published on %d", port.Port, port.HostPort)
	case err != nil:
		s.lose(path, "%q is no port; %d is published on %d", text, port.Port, port.HostPort)
	default:
		port.HostPort = uint32(n)
		if several {
			s.lose(path, "Docker picks one port of %s; %d is published on %d", text, port.Port, n)
		}
	}
}

// address to publish on; that of all is none.
func address(ip string) string {
	ip = strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")
	if ip == "0.0.0.0" || ip == "::" {
		return ""
	}
	return ip
}

// joined makes ranges of ports that follow each other on both sides.
func joined(list []*capsulev1.Port) []*capsulev1.Port {
	slices.SortStableFunc(list, func(a, b *capsulev1.Port) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.HostPort, b.HostPort))
	})
	var made []*capsulev1.Port
	for _, p := range list {
		if len(made) > 0 {
			last := made[len(made)-1]
			hostEnd, end := max(last.HostPort, last.HostPortEnd), max(last.Port, last.PortEnd)
			if p.Address == last.Address && p.Protocol == last.Protocol && p.HostPort == hostEnd+1 && p.Port == end+1 {
				last.HostPortEnd, last.PortEnd = p.HostPort, p.Port
				continue
			}
		}
		made = append(made, p)
	}
	return made
}
