package capture

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"capsule/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

const here, there = "192.168.77.1", "192.168.77.2"

// neighbour is another machine at the end of the link "lan".
func neighbour(t *testing.T) *nettest.NS {
	t.Helper()
	ns := nettest.New(t)
	nettest.Cable(t, "lan", ns, "eth0")
	ns.Addr(t, "eth0", there+"/24")
	(*nettest.NS)(nil).Addr(t, "lan", here+"/24")
	return ns
}

// recorded is one packet as a reader of pcapng sees it.
type recorded struct {
	link   string
	packet gopacket.Packet
	info   gopacket.CaptureInfo
}

func read(t *testing.T, data []byte) (list []recorded) {
	t.Helper()
	r, err := pcapgo.NewNgReader(bytes.NewReader(data), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatalf("%v: %x", err, data)
	}
	for {
		packet, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		link, err := r.Interface(info.InterfaceIndex)
		if err != nil || link.LinkType != layers.LinkTypeEthernet {
			t.Fatal(link, err)
		}
		list = append(list, recorded{link.Name, gopacket.NewPacket(packet, layers.LayerTypeEthernet, gopacket.Default), info})
	}
}

// talk sends datagrams to a port of the neighbour until ctx ends.
func talk(ctx context.Context, t *testing.T, to string, size int) {
	t.Helper()
	c, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		for tick := time.NewTicker(2 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			_, _ = c.Write(bytes.Repeat([]byte("x"), size)) // nobody may listen
		}
	}()
}

// recordWhile runs a capture while datagrams go to two ports of the neighbour.
func recordWhile(t *testing.T, o Options, size int, ports ...string) ([]recorded, End, []byte) {
	t.Helper()
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Minute)
	defer stop()
	for _, port := range ports {
		talk(ctx, t, net.JoinHostPort(there, port), size)
	}
	var data []byte
	end, err := c.Run(ctx, func(b []byte) error { data = append(data, b...); return nil })
	if err != nil {
		t.Fatal(err)
	}
	if end.Bytes != uint64(len(data)) {
		t.Errorf("%d bytes are told, and %d sent", end.Bytes, len(data))
	}
	list := read(t, data)
	if end.Packets != uint64(len(list)) {
		t.Errorf("%d packets are told, and %d recorded", end.Packets, len(list))
	}
	return list, end, data
}

func TestCount(t *testing.T) {
	neighbour(t)
	begun := time.Now()
	list, end, _ := recordWhile(t, Options{Link: "lan", Filter: "udp port 4000", Packets: 7, Application: "test"}, 100, "4000", "4001")
	if len(list) != 7 || end.Reason != "packets" {
		t.Errorf("%d packets, %+v", len(list), end)
	}
	for _, r := range list {
		udp, ok := r.packet.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if !ok || udp.DstPort != 4000 || len(udp.Payload) != 100 || r.link != "lan" {
			t.Errorf("recorded %s: %v", r.link, r.packet)
		}
		if at := r.info.Timestamp; at.Before(begun.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
			t.Errorf("at %v", at)
		}
	}
}

func TestSize(t *testing.T) {
	neighbour(t)
	list, end, data := recordWhile(t, Options{Link: "lan", Filter: "udp", Bytes: 20 << 10}, 1000, "4000")
	if end.Reason != "bytes" || len(data) > 20<<10 || len(data) < 15<<10 || len(list) < 10 {
		t.Errorf("%d bytes, %d packets, %+v", len(data), len(list), end)
	}
}

func TestDuration(t *testing.T) {
	neighbour(t)
	begun := time.Now()
	list, end, _ := recordWhile(t, Options{Link: "lan", Filter: "tcp", Duration: 300 * time.Millisecond}, 10, "4000")
	if end.Reason != "duration" || len(list) != 0 || time.Since(begun) < 300*time.Millisecond {
		t.Errorf("%d packets, %+v after %v", len(list), end, time.Since(begun))
	}
}

// What is kept of a packet is less than it had, and its length is told.
func TestPacketBytes(t *testing.T) {
	neighbour(t)
	list, _, _ := recordWhile(t, Options{Link: "lan", Filter: "udp", Packets: 3, PacketBytes: 60}, 1000, "4000")
	for _, r := range list {
		if r.info.CaptureLength != 60 || r.info.Length != 14+20+8+1000 {
			t.Errorf("%+v", r.info)
		}
	}
}

// On all links a packet is recorded on each that it passes, on a loopback once.
func TestAny(t *testing.T) {
	neighbour(t)
	list, _, _ := recordWhile(t, Options{Link: AnyLink, Filter: "udp port 4000", Packets: 5}, 10, "4000")
	if len(list) != 5 || list[0].link != "lan" {
		t.Error(list)
	}
	c, err := Open(Options{Link: AnyLink, Filter: "udp port 4002", Packets: 2})
	if err != nil {
		t.Fatal(err)
	}
	to, err := net.ListenPacket("udp", "127.0.0.1:4002")
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	for _, text := range []string{"one", "two"} {
		if _, err := to.WriteTo([]byte(text), to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	var data []byte
	if _, err := c.Run(t.Context(), func(b []byte) error { data = append(data, b...); return nil }); err != nil {
		t.Fatal(err)
	}
	looped := read(t, data)
	for i, want := range []string{"one", "two"} {
		udp := looped[i].packet.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if looped[i].link != "lo" || string(udp.Payload) != want {
			t.Errorf("recorded %s: %s", looped[i].link, udp.Payload)
		}
	}
}

// The connection that is left out is, and others are not.
func TestWithout(t *testing.T) {
	ns := neighbour(t)
	var l net.Listener
	ns.Do(t, func() (err error) { l, err = net.Listen("tcp", there+":50000"); return err })
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c) //nolint:errcheck // an echo
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", there+":50000")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	own, other := dial(), dial()
	at := func(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }
	c, err := Open(Options{Link: "lan", Filter: "tcp", Packets: 2, Without: [2]netip.AddrPort{at(own.LocalAddr()), at(own.RemoteAddr())}})
	if err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{own, other} {
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
	var data []byte
	if end, err := c.Run(t.Context(), func(b []byte) error { data = append(data, b...); return nil }); err != nil || end.Packets != 2 {
		t.Fatalf("%+v, %v", end, err)
	}
	for _, r := range read(t, data) {
		tcp := r.packet.Layer(layers.LayerTypeTCP).(*layers.TCP)
		if port := at(own.LocalAddr()).Port(); uint16(tcp.SrcPort) == port || uint16(tcp.DstPort) == port {
			t.Errorf("recorded %v", r.packet)
		}
	}
}

// A caller that goes ends it, and so does one that takes nothing any more, at once:
// also where no packet comes.
func TestEnds(t *testing.T) {
	neighbour(t)
	begun := time.Now()
	defer func() {
		if took := time.Since(begun); took > DurationDefault/2 {
			t.Errorf("it took %v", took)
		}
	}()
	quiet, leave := context.WithCancel(t.Context())
	q, err := Open(Options{Link: "lan", Filter: "udp port 1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Run(quiet, func([]byte) error { leave(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that goes while nothing comes: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c, err := Open(Options{Link: "lan"})
	if err != nil {
		t.Fatal(err)
	}
	talk(t.Context(), t, there+":4000", 10)
	if _, err := c.Run(ctx, func([]byte) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that goes: %v", err)
	}
	if c, err = Open(Options{Link: "lan"}); err != nil {
		t.Fatal(err)
	}
	gone := errors.New("gone")
	if _, err := c.Run(t.Context(), func([]byte) error { return gone }); !errors.Is(err, gone) {
		t.Errorf("a caller that takes nothing: %v", err)
	}
}

func TestDefaultLink(t *testing.T) {
	neighbour(t)
	if got, err := DefaultLink(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a route: %q, %v", got, err)
	}

	(*nettest.NS)(nil).Route(t, "0.0.0.0/0", there)
	if got, err := DefaultLink(); err != nil || got != "lan" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		want string
		is   func(error) bool
	}{
		"link":         {Options{Link: "eth9"}, `no link "eth9"; there are `, errdefs.IsNotFound},
		"filter":       {Options{Link: "lo", Filter: "tpc"}, `unexpected "tpc"`, errdefs.IsInvalidArgument},
		"packets":      {Options{Link: "lo", Packets: PacketsMax + 1}, "at most 1000000 packets", errdefs.IsInvalidArgument},
		"bytes":        {Options{Link: "lo", Bytes: BytesMax + 1}, "at most 1073741824 bytes", errdefs.IsInvalidArgument},
		"few bytes":    {Options{Link: "lo", Bytes: 1}, "room for at least 4096", errdefs.IsInvalidArgument},
		"duration":     {Options{Link: "lo", Duration: DurationMax + 1}, "at most 1h0m0s", errdefs.IsInvalidArgument},
		"packet bytes": {Options{Link: "lo", PacketBytes: PacketBytesMax + 1}, "at most 262144 bytes of a packet", errdefs.IsInvalidArgument},
	} {
		if _, err := Open(c.o); !c.is(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
