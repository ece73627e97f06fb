package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"capsule/internal/links"
)

// flow is what of a tracked connection matters here.
type flow struct {
	Protocol string
	From     netip.Addr     // the sender
	To       netip.AddrPort // where the sender sends
	Answers  netip.AddrPort // who really answers
}

// stale says whether a flow leads somewhere that its published port no longer
// does: UDP never ends by itself, and a client that keeps its port would talk
// to the old address for ever.
func stale(f flow, d desired, local map[netip.Addr]bool) bool {
	if f.To.Port() == dnsPort && d.gateway(f.To.Addr()) {
		return false
	}
	for _, p := range d.Ports {
		at := Published{Address: f.To.Addr(), Port: f.To.Port(), Protocol: f.Protocol}
		if !p.overlaps(at) {
			continue
		}
		if !p.From.anybody() && !local[f.From] && !d.workloads(f.From) && !p.From.allows(f.From, d.lan()) {
			return local[f.To.Addr()]
		}
		if p.Host {
			return f.To != f.Answers
		}
		if f.To == f.Answers {
			// Sent to somebody else's address, or to a port of this box before
			// it led to a workload.
			return local[f.To.Addr()]
		}
		for _, to := range p.To {
			if f.Answers == netip.AddrPortFrom(to, p.Target+f.To.Port()-p.Port) {
				return false
			}
		}
		return d.workloads(f.Answers.Addr())
	}
	// Not published: translated all the same means that it once was.
	return f.To != f.Answers && d.workloads(f.Answers.Addr())
}

// workloads says whether the address belongs to the bridge's networks.
func (d desired) workloads(a netip.Addr) bool {
	return d.Net.IPv4.Contains(a) || d.Net.IPv6.Contains(a)
}

// gateway says whether the address is the bridge's own.
func (d desired) gateway(a netip.Addr) bool {
	return a == d.Net.Gateway4() || a == d.Net.Gateway6()
}

// flushAttempts bounds the retries of a dump that the kernel interrupted.
const flushAttempts = 3

// flushStale forgets the flows that lead nowhere, and no others.
func flushStale(d desired) error {
	families := []netlink.InetFamily{unix.AF_INET}
	if d.IPv6 {
		families = append(families, unix.AF_INET6)
	}
	local, err := localAddresses()
	if err != nil {
		return err
	}
	for _, family := range families {
		var err error
		for range flushAttempts {
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, staleFlows{d, local})
			if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.ENOENT) {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("forget flows of ports that moved: %w", err)
		}
	}
	return nil
}

// staleFlows adapts stale to the filter of package netlink.
type staleFlows struct {
	desired desired
	local   map[netip.Addr]bool
}

func (s staleFlows) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	f := flow{From: endpoint(c.Forward.SrcIP, 0).Addr(), To: endpoint(c.Forward.DstIP, c.Forward.DstPort), Answers: endpoint(c.Reverse.SrcIP, c.Reverse.SrcPort)}
	switch c.Forward.Protocol {
	case unix.IPPROTO_TCP:
		f.Protocol = "tcp"
	case unix.IPPROTO_UDP:
		f.Protocol = "udp"
	default:
		return false
	}
	return stale(f, s.desired, s.local)
}

func endpoint(ip []byte, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

// localAddresses are those of this box.
func localAddresses() (map[netip.Addr]bool, error) {
	addrs, err := links.Addresses(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list own addresses: %w", err)
	}
	local := map[netip.Addr]bool{}
	for _, a := range addrs {
		ip, _ := netip.AddrFromSlice(a.IP)
		local[ip.Unmap()] = true
	}
	return local, nil
}
