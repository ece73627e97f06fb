package nettest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Advertisement is what a router says of a network (RFC 4861, 4.2; RFC 8106).
type Advertisement struct {
	Router netip.Addr // link-local; who says it
	Prefix netip.Addr // of a /64
	DNS    netip.Addr // the zero Addr is none
}

// advertiseEvery: hosts that come later needn't ask.
const advertiseEvery = time.Second

// Bytes of the message.
func (a Advertisement) Bytes() []byte {
	b := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // lifetime 1800 s
	b = append(b, 3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0)
	b = append(b, a.Prefix.AsSlice()...)
	if !a.DNS.IsValid() {
		return b
	}
	b = append(b, 25, 3, 0, 0, 0, 0, 0x02, 0x58)
	return append(b, a.DNS.AsSlice()...)
}

// Send says it once to all on a link of a namespace.
func (a Advertisement) Send(ns *NS, link string) error {
	return ns.Try(func() error {
		dialer := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			return errors.Join(c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255)
			}), err)
		}}
		conn, err := dialer.ListenPacket(context.Background(), "ip6:ipv6-icmp", a.Router.WithZone(link).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.WriteTo(a.Bytes(), &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: link})
		return err
	})
}

// Advertise says it again and again until the test ends.
func (a Advertisement) Advertise(t testing.TB, ns *NS, link string) {
	t.Helper()
	must(t, a.Send(ns, link))
	stop, done := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-done })
	go func() {
		defer close(done)
		tick := time.NewTicker(advertiseEvery)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				_ = a.Send(ns, link) // the link may be down
			}
		}
	}()
}
