package uplink

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// A link is asked so often and so long whether somebody has an address. RFC 5227
// takes up to seven seconds, for hosts of 2008 behind slow bridges; neighbours that
// are awake answer within milliseconds.
const (
	probes     = 3
	probeEvery = 300 * time.Millisecond
	probeWait  = 400 * time.Millisecond // after the last
)

// arp is a message about IPv4 on Ethernet (RFC 826).
type arp struct {
	operation uint16
	hardware  [6]byte // of the sender
	sender    netip.Addr
	target    netip.Addr
}

// Of the messages' head.
const (
	arpLen      = 28
	arpRequest  = 1
	arpEthernet = 1
)

func (m arp) marshal() []byte {
	b := make([]byte, 0, arpLen)
	b = binary.BigEndian.AppendUint16(b, arpEthernet)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, m.operation)
	b = append(append(b, m.hardware[:]...), m.sender.AsSlice()...)
	return append(append(b, make([]byte, 6)...), m.target.AsSlice()...)
}

func parseARP(b []byte) (m arp, ok bool) {
	if len(b) < arpLen || binary.BigEndian.Uint16(b) != arpEthernet || binary.BigEndian.Uint16(b[2:]) != unix.ETH_P_IP || b[4] != 6 || b[5] != 4 {
		return arp{}, false
	}
	return arp{
		operation: binary.BigEndian.Uint16(b[6:]), hardware: [6]byte(b[8:14]),
		sender: netip.AddrFrom4([4]byte(b[14:18])), target: netip.AddrFrom4([4]byte(b[24:28])),
	}, true
}

// claims tells that whoever sent it has the address, or is about to take it.
func (m arp) claims(a netip.Addr, ours net.HardwareAddr) bool {
	if bytes.Equal(m.hardware[:], ours) {
		return false
	}
	return m.sender == a || m.operation == arpRequest && m.sender.IsUnspecified() && m.target == a
}

// announce tells all on a link that we have an address, so that nobody goes on with
// whoever had it before.
func announce(link string, a netip.Addr) error {
	conn, ours, err := listenARP(link)
	if err != nil {
		return fmt.Errorf("announce %s on link %q: %w", a, link, err)
	}
	defer conn.Close()
	message := arp{operation: arpRequest, hardware: [6]byte(ours), sender: a, target: a}.marshal()
	if _, err := conn.WriteTo(message, everybody); err != nil {
		return fmt.Errorf("announce %s on link %q: %w", a, link, err)
	}
	return nil
}

var everybody = &packet.Addr{HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}

// listenARP gives a socket on a link, and the link's address.
func listenARP(link string) (*packet.Conn, net.HardwareAddr, error) {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return nil, nil, err
	}
	conn, err := packet.Listen(i, packet.Datagram, unix.ETH_P_ARP, nil)
	return conn, i.HardwareAddr, err
}

// probe asks who on a link has an IPv4 address (RFC 5227), and gives the hardware
// address of the first that says so; nil when nobody does.
func probe(ctx context.Context, link string, a netip.Addr) (net.HardwareAddr, error) {
	conn, ours, err := listenARP(link)
	if err != nil {
		return nil, fmt.Errorf("ask on link %q who has %s: %w", link, a, err)
	}
	defer conn.Close()
	question := arp{operation: arpRequest, hardware: [6]byte(ours), sender: netip.IPv4Unspecified(), target: a}.marshal()
	for i := range probes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if _, err := conn.WriteTo(question, everybody); err != nil {
			return nil, fmt.Errorf("ask on link %q who has %s: %w", link, a, err)
		}
		wait := probeEvery
		if i == probes-1 {
			wait = probeWait
		}
		if who, err := claimant(conn, a, ours, time.Now().Add(wait)); who != nil || err != nil {
			return who, err
		}
	}
	return nil, nil
}

// claimant reads until somebody claims the address, or the time has come.
func claimant(conn *packet.Conn, a netip.Addr, ours net.HardwareAddr, until time.Time) (net.HardwareAddr, error) {
	if err := conn.SetReadDeadline(until); err != nil {
		return nil, err
	}
	buffer := make([]byte, 128)
	for {
		n, _, err := conn.ReadFrom(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("listen for who has %s: %w", a, err)
		}
		if m, ok := parseARP(buffer[:n]); ok && m.claims(a, ours) {
			return m.hardware[:], nil
		}
	}
}
