package mdns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// hops of all packets, so that a receiver sees that none was routed.
const hops = 255

// packet is one that was sent to the group.
type packet struct {
	link int // index
	from netip.AddrPort
	data []byte
}

// sockets are shared with whatever else on this machine speaks multicast DNS.
// One of them is nil where its family is not there.
type sockets struct {
	v4 *ipv4.PacketConn
	v6 *ipv6.PacketConn
}

func openSockets(ctx context.Context) (*sockets, error) {
	s := &sockets{}
	err4, err6 := s.open4(ctx), s.open6(ctx)
	if s.v4 == nil && s.v6 == nil {
		return nil, errors.Join(err4, err6)
	}
	return s, nil
}

func (s *sockets) open4(ctx context.Context) error {
	// To listen at the group's address shares the port (net.ListenConfig).
	c, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp4", group4.String())
	if err != nil {
		return err
	}
	conn := ipv4.NewPacketConn(c)
	if err := errors.Join(conn.SetControlMessage(ipv4.FlagInterface|ipv4.FlagDst, true),
		conn.SetMulticastTTL(hops), conn.SetTTL(hops)); err != nil {
		return errors.Join(err, c.Close())
	}
	s.v4 = conn
	return nil
}

func (s *sockets) open6(ctx context.Context) error {
	c, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp6", group6.String())
	if err != nil {
		return err
	}
	conn := ipv6.NewPacketConn(c)
	if err := errors.Join(conn.SetControlMessage(ipv6.FlagInterface|ipv6.FlagDst, true),
		conn.SetMulticastHopLimit(hops), conn.SetHopLimit(hops)); err != nil {
		return errors.Join(err, c.Close())
	}
	s.v6 = conn
	return nil
}

func (s *sockets) close() {
	if s.v4 != nil {
		s.v4.Close()
	}
	if s.v6 != nil {
		s.v6.Close()
	}
}

// join hears the group on a link. A link that is gone leaves by itself.
func (s *sockets) join(l Link) error {
	link := &net.Interface{Index: l.Index, Name: l.Name}
	var errs []error
	if s.v4 != nil {
		errs = append(errs, s.v4.JoinGroup(link, group4))
	}
	if s.v6 != nil {
		errs = append(errs, s.v6.JoinGroup(link, group6))
	}
	return errors.Join(errs...)
}

func (s *sockets) leave(l Link) {
	link := &net.Interface{Index: l.Index, Name: l.Name}
	if s.v4 != nil {
		_ = s.v4.LeaveGroup(link, group4) // a link that is gone has left
	}
	if s.v6 != nil {
		_ = s.v6.LeaveGroup(link, group6)
	}
}

// receive gives what comes until the sockets are closed, or one breaks.
func (s *sockets) receive(ctx context.Context, out chan<- packet) error {
	broken := make(chan error, 2)
	var running sync.WaitGroup
	if s.v4 != nil {
		running.Go(func() { broken <- s.receive4(ctx, out) })
	}
	if s.v6 != nil {
		running.Go(func() { broken <- s.receive6(ctx, out) })
	}
	err := <-broken
	s.close() // and the other one ends
	running.Wait()
	return err
}

func (s *sockets) receive4(ctx context.Context, out chan<- packet) error {
	buf := make([]byte, packetMax)
	for {
		n, cm, from, err := s.v4.ReadFrom(buf)
		if err != nil {
			return err
		}
		if cm != nil && cm.Dst.Equal(group4.IP) {
			give(ctx, out, cm.IfIndex, from, buf[:n])
		}
	}
}

func (s *sockets) receive6(ctx context.Context, out chan<- packet) error {
	buf := make([]byte, packetMax)
	for {
		n, cm, from, err := s.v6.ReadFrom(buf)
		if err != nil {
			return err
		}
		if cm != nil && cm.Dst.Equal(group6.IP) {
			give(ctx, out, cm.IfIndex, from, buf[:n])
		}
	}
}

func give(ctx context.Context, out chan<- packet, link int, from net.Addr, data []byte) {
	u, ok := from.(*net.UDPAddr)
	if !ok {
		return
	}
	at := u.AddrPort()
	select {
	case out <- packet{link, netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), append([]byte{}, data...)}:
	case <-ctx.Done():
	}
}

// toGroup sends by a link, in each family that it has.
func (s *sockets) toGroup(l Link, data []byte) error {
	var err4, err6 error
	src := source4(l)
	if s.v4 != nil && src != nil {
		_, err4 = s.v4.WriteTo(data, &ipv4.ControlMessage{IfIndex: l.Index, Src: src}, group4)
	}
	if s.v6 != nil {
		_, err6 = s.v6.WriteTo(data, &ipv6.ControlMessage{IfIndex: l.Index}, group6)
	}
	if err4 == nil && err6 != nil && src != nil {
		return nil // a link without IPv6
	}
	return errors.Join(err4, err6)
}

// toOne answers an asker by the link that it asked on.
func (s *sockets) toOne(l Link, to netip.AddrPort, data []byte) error {
	if to.Addr().Is4() {
		_, err := s.v4.WriteTo(data, &ipv4.ControlMessage{IfIndex: l.Index, Src: source4(l)}, net.UDPAddrFromAddrPort(to))
		return err
	}
	_, err := s.v6.WriteTo(data, &ipv6.ControlMessage{IfIndex: l.Index}, net.UDPAddrFromAddrPort(to))
	return err
}

func source4(l Link) net.IP {
	for _, p := range l.Addresses {
		if p.Addr().Is4() {
			return p.Addr().AsSlice()
		}
	}
	return nil
}
