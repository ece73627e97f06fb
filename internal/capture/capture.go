// Package capture records the packets of a network link in the form of pcapng, which
// tcpdump and Wireshark read. The kernel filters them (classic BPF); a capture ends by
// itself, at whichever of its bounds comes first. It knows no workload, and changes
// nothing on the machine.
package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/mdlayher/socket"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Bounds of a capture: what holds when nothing is said, and what can be said.
const (
	PacketsDefault  = 10_000
	PacketsMax      = 1_000_000
	DurationDefault = time.Minute
	DurationMax     = time.Hour
	BytesDefault    = 32 << 20
	BytesMax        = 1 << 30
	PacketBytesMax  = 256 << 10 // of one packet; larger than any
	kernelBuffer    = 4 << 20   // bytes that wait in the kernel
	pieceBytes      = 64 << 10  // that are sent at once
	waitingMax      = 64        // packets that wait to be sent
	reserved        = 4096      // bytes of the record for its begin and end
)

// AnyLink stands for all links at once.
const AnyLink = "any"

// Options of a capture. Zeros are the defaults.
type Options struct {
	// Link is its name, or AnyLink.
	Link   string
	Filter string
	// Without is a connection that is left out: both its ends; zero leaves none out.
	Without [2]netip.AddrPort

	Packets, Bytes uint64
	Duration       time.Duration
	// PacketBytes are kept of each packet.
	PacketBytes uint32
	// Application that is named in the record.
	Application string
}

// End tells what came of a capture.
type End struct {
	Packets, Bytes, Dropped uint64
	// Reason is the bound that was met: "packets", "duration" or "bytes".
	Reason string
}

// Capture is one that has begun: what comes is kept from now on.
type Capture struct {
	options Options
	conn    *socket.Conn
	names   map[int]string // of links, by their numbers
}

// Open begins a capture. The error says what of the options can't be.
func Open(o Options) (*Capture, error) {
	if err := o.bound(); err != nil {
		return nil, err
	}
	filter, err := o.program()
	if err != nil {
		return nil, err
	}
	c := &Capture{options: o, names: map[int]string{}}
	index, err := c.find()
	if err != nil {
		return nil, err
	}
	err = c.listen(index, filter)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("capture on link %q: this service may not capture: %w", o.Link, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("capture on link %q: %w", o.Link, err)
	}
	return c, nil
}

// Close ends it without a word.
func (c *Capture) Close() error { return c.conn.Close() }

// bound fills defaults in and refuses what is more than the most.
func (o *Options) bound() error {
	limit := func(what string, v *uint64, usual, most uint64) error {
		if *v == 0 {
			*v = usual
		}
		if *v > most {
			return fmt.Errorf("a capture has at most %d %s, not %d: %w", most, what, *v, errdefs.ErrInvalidArgument)
		}
		return nil
	}
	duration := uint64(max(0, o.Duration)) //nolint:gosec // not negative
	kept := uint64(o.PacketBytes)
	err := errors.Join(limit("packets", &o.Packets, PacketsDefault, PacketsMax), limit("bytes", &o.Bytes, BytesDefault, BytesMax),
		limit("bytes of a packet", &kept, PacketBytesMax, PacketBytesMax))
	o.PacketBytes = uint32(kept) //nolint:gosec // at most PacketBytesMax
	if duration == 0 {
		duration = uint64(DurationDefault)
	}
	o.Duration = time.Duration(duration) //nolint:gosec // was one
	switch {
	case err != nil:
		return err
	case o.Duration > DurationMax:
		return fmt.Errorf("a capture takes at most %v, not %v: %w", DurationMax, o.Duration, errdefs.ErrInvalidArgument)
	case o.Bytes < reserved:
		return fmt.Errorf("a capture needs room for at least %d bytes, not %d: %w", reserved, o.Bytes, errdefs.ErrInvalidArgument)
	}
	return nil
}

// program is the filter for the kernel.
func (o *Options) program() ([]bpf.RawInstruction, error) {
	wanted, err := parseFilter(o.Filter)
	if err != nil {
		return nil, err
	}
	if o.Without[0].IsValid() && o.Without[1].IsValid() {
		wanted = all{inverse{connection(o.Without[0], o.Without[1])}, wanted}
	}
	code, err := program(wanted)
	if err != nil {
		return nil, err
	}
	return bpf.Assemble(code)
}

// find gives the number of the link, 0 for any.
func (c *Capture) find() (int, error) {
	links, err := net.Interfaces()
	if err != nil {
		return 0, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, l := range links {
		c.names[l.Index] = l.Name
		names = append(names, l.Name)
	}
	if c.options.Link == AnyLink {
		return 0, nil
	}
	at := slices.Index(names, c.options.Link)
	if at < 0 {
		return 0, fmt.Errorf("no link %q; there are %s, and %q for all of them: %w", c.options.Link, strings.Join(names, ", "), AnyLink, errdefs.ErrNotFound)
	}
	return links[at].Index, nil
}

// listen opens the socket. It gets nothing before it is bound, and so nothing that
// the filter has not seen.
func (c *Capture) listen(index int, filter []bpf.RawInstruction) (err error) {
	if c.conn, err = socket.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0, "capture", nil); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			c.conn.Close()
		}
	}()
	if err := c.conn.SetBPF(filter); err != nil {
		return err
	}
	// Less room only loses packets sooner, and losses are told.
	_ = c.conn.SetsockoptInt(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, kernelBuffer)
	if err := c.conn.SetsockoptInt(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return err
	}
	order := binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)
	return c.conn.Bind(&unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(order), Ifindex: index})
}

// packet is one as it was received.
type packet struct {
	link   int
	at     time.Time
	data   []byte
	length int // on the link
	out    bool
}

// Run records until a bound is met, and sends the record in pieces of whole blocks.
// The capture is closed then.
func (c *Capture) Run(ctx context.Context, send func([]byte) error) (End, error) {
	defer c.conn.Close()
	timed, cancel := context.WithTimeout(ctx, c.options.Duration)
	defer cancel()
	defer context.AfterFunc(timed, func() { _ = c.conn.SetReadDeadline(time.Unix(0, 1)) })() // wakes who waits for a packet
	packets := make(chan packet, waitingMax)
	failed := make(chan error, 1)
	go func() { failed <- c.receive(timed, packets) }()
	r := &record{options: c.options, names: c.names, send: send, numbers: map[int]uint32{}}
	if err := r.begin(); err != nil {
		return r.end, err
	}
	if err := r.take(packets); err != nil {
		cancel()
		for range packets { // its sender may wait
		}
		return r.end, err
	}
	cancel()
	for range packets {
	}
	if err := <-failed; err != nil {
		return r.end, fmt.Errorf("capture on link %q: %w", c.options.Link, err)
	}
	if err := ctx.Err(); err != nil {
		return r.end, err
	}
	if s, err := c.conn.GetsockoptTpacketStats(unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		r.end.Dropped = uint64(s.Drops)
	}
	return r.end, r.finish()
}

// receive gives packets until ctx ends, which is no error.
func (c *Capture) receive(ctx context.Context, packets chan<- packet) error {
	defer close(packets)
	wire, err := c.conn.SyscallConn()
	if err != nil {
		return err
	}
	buffer, control := make([]byte, c.options.PacketBytes), make([]byte, 256)
	for {
		var n, controls int
		var from unix.Sockaddr
		// MSG_TRUNC: the length is that of the packet, also where the buffer is shorter.
		waited := wire.Read(func(fd uintptr) bool {
			for err = unix.EINTR; errors.Is(err, unix.EINTR); {
				n, controls, _, from, err = unix.Recvmsg(int(fd), buffer, control, unix.MSG_TRUNC)
			}
			return !errors.Is(err, unix.EAGAIN)
		})
		switch err := errors.Join(waited, err); {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENETDOWN): // and may come up again
			continue
		case err != nil:
			return err
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || !c.records(link) {
			continue
		}
		p := packet{
			link: link.Ifindex, at: stamped(control[:controls]), length: n, out: link.Pkttype == unix.PACKET_OUTGOING,
			data: slices.Clone(buffer[:min(n, len(buffer))]),
		}
		select {
		case packets <- p:
		case <-ctx.Done():
			return nil
		}
	}
}

// records tells whether a packet is recorded: those of Ethernet links, which the
// filter is made for, and of a loopback only once.
func (c *Capture) records(from *unix.SockaddrLinklayer) bool {
	switch from.Hatype {
	case unix.ARPHRD_ETHER:
		return true
	case unix.ARPHRD_LOOPBACK:
		return from.Pkttype != unix.PACKET_OUTGOING
	}
	return false
}

// stamped is the kernel's time of a packet.
func stamped(control []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	for _, m := range messages {
		if err == nil && m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:]))) //nolint:gosec // a timespec
		}
	}
	return time.Now()
}

// record is what is sent of a capture.
type record struct {
	options Options
	names   map[int]string
	send    func([]byte) error
	numbers map[int]uint32 // of links in the record, by their numbers on the machine
	piece   []byte
	end     End
}

func (r *record) begin() error {
	r.add(section(r.options.Application))
	if r.options.Link != AnyLink { // known also to who sees no packet
		for index, name := range r.names {
			if name == r.options.Link {
				r.number(index)
			}
		}
	}
	return r.flush()
}

// number is that of a link in the record, which gets it at its first packet.
func (r *record) number(index int) uint32 {
	n, known := r.numbers[index]
	if !known {
		n = uint32(len(r.numbers)) //nolint:gosec // links of a machine
		r.numbers[index] = n
		name := r.names[index]
		if name == "" {
			name = fmt.Sprintf("link%d", index) // came later
		}
		r.add(interfaceBlock(name, r.options.PacketBytes))
	}
	return n
}

func (r *record) add(b []byte) {
	r.piece = append(r.piece, b...)
	r.end.Bytes += uint64(len(b))
}

func (r *record) flush() error {
	if len(r.piece) == 0 {
		return nil
	}
	err := r.send(r.piece)
	r.piece = nil // the receiver may keep it
	return err
}

// take records packets until they end or a bound is met. What waits is sent together.
func (r *record) take(packets <-chan packet) error {
	for p := range packets {
		number := r.number(p.link)
		b := packetBlock(number, p.at, p.data, p.length, p.out)
		if r.end.Bytes+uint64(len(b))+reserved/2 > r.options.Bytes {
			r.end.Reason = "bytes"
			return r.flush()
		}
		r.add(b)
		if r.end.Packets++; r.end.Packets == r.options.Packets {
			r.end.Reason = "packets"
			return r.flush()
		}
		if len(packets) > 0 && len(r.piece) < pieceBytes {
			continue
		}
		if err := r.flush(); err != nil {
			return err
		}
	}
	r.end.Reason = "duration"
	return nil
}

// finish writes how many were lost, of all links with the first one.
func (r *record) finish() error {
	if len(r.numbers) > 0 {
		r.add(statisticsBlock(0, time.Now(), r.end.Packets, r.end.Dropped))
	}
	return r.flush()
}

// DefaultLink is the one that the default route leads over.
func DefaultLink() (string, error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return "", fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst != nil && (!r.Dst.IP.IsUnspecified() || !zeroMask(r.Dst.Mask)) {
				continue
			}
			if l, err := net.InterfaceByIndex(r.LinkIndex); err == nil {
				return l.Name, nil
			}
		}
	}
	return "", fmt.Errorf("no link has a default route: name one, or %q for all: %w", AnyLink, errdefs.ErrFailedPrecondition)
}

func zeroMask(m net.IPMask) bool {
	ones, _ := m.Size()
	return ones == 0
}
