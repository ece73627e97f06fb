package microvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"capsule/internal/nettest"
)

// room is a workload's namespace, whose eth0 has its other end, link "wl", in
// this one.
type room struct {
	*nettest.NS
	path string
}

const (
	outside4, inside4 = "172.30.0.1", "172.30.0.3"
	outside6, inside6 = "fd7a:9c1e:30::1", "fd7a:9c1e:30::3"
)

func newRoom(t *testing.T) room {
	t.Helper()
	r := room{nettest.New(t), filepath.Join(t.TempDir(), "ns")}
	check(t, os.WriteFile(r.path, nil, 0o600))
	check(t, unix.Mount(fmt.Sprintf("/proc/self/fd/%d", r.FD), r.path, "", unix.MS_BIND, ""))
	t.Cleanup(func() { check(t, unix.Unmount(r.path, unix.MNT_DETACH)) })
	r.connect(t)
	return r
}

// connect does what the network does, and does again.
func (r room) connect(t *testing.T) {
	t.Helper()
	if _, err := r.Handle.LinkByName(cardLink); err != nil {
		r.Sysctl(t, "ipv6/conf/default/accept_dad", "0")
		nettest.Cable(t, "wl", r.NS, cardLink)
		check(t, r.Handle.LinkSetMTU(r.Link(t, cardLink), 1400))
	}
	r.Up(t, cardLink)
	(*nettest.NS)(nil).Addr(t, "wl", outside4+"/16", outside6+"/64")
	r.Addr(t, cardLink, inside4+"/16", inside6+"/64")
	r.Route(t, "0.0.0.0/0", outside4)
	r.Route(t, "::/0", outside6)
}

// wire reads and writes whole frames; on the tap with the header of virtio-net
// before each.
type wire struct {
	file   *os.File
	header int
}

const vnetHeader = 10

func (w wire) send(t *testing.T, frame []byte) {
	t.Helper()
	_, err := w.file.Write(append(make([]byte, w.header), frame...))
	check(t, err)
}

// expect waits for a frame that is wanted, past others.
func (w wire) expect(t *testing.T, what string, wanted func(frame []byte) bool) []byte {
	t.Helper()
	check(t, w.file.SetReadDeadline(time.Now().Add(patience)))
	buffer := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buffer)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if frame := buffer[w.header:n]; wanted(frame) {
			return frame
		}
	}
}

// packets is a raw socket on a link of this namespace.
func packets(t *testing.T, name string) wire {
	t.Helper()
	link, err := net.InterfaceByName(name)
	check(t, err)
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
	check(t, err)
	check(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}))
	f := os.NewFile(uintptr(fd), "packets")
	t.Cleanup(func() { f.Close() })
	return wire{f, 0}
}

var broadcast = net.HardwareAddr{255, 255, 255, 255, 255, 255}

// arp is a question (1) or an answer (2).
func arp(operation byte, from net.HardwareAddr, fromIP string, to net.HardwareAddr, toIP string) []byte {
	b := append(append([]byte{}, to...), from...)
	b = append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, operation)
	b = append(append(b, from...), netip.MustParseAddr(fromIP).AsSlice()...)
	return append(append(b, to...), netip.MustParseAddr(toIP).AsSlice()...)
}

func isARP(operation byte) func([]byte) bool {
	return func(f []byte) bool { return len(f) >= 42 && f[12] == 8 && f[13] == 6 && f[21] == operation }
}

func open(t *testing.T, r room) (*card, wire) {
	t.Helper()
	c, err := openCard(r.path)
	check(t, err)
	t.Cleanup(func() { c.Tap.Close() })
	return c, wire{c.Tap, vnetHeader}
}

func TestCardFacts(t *testing.T) {
	r := newRoom(t)
	c, _ := open(t, r)
	want := &card{
		Tap: c.Tap, MAC: r.Link(t, cardLink).Attrs().HardwareAddr, MTU: 1400,
		Addresses: []netip.Prefix{netip.MustParsePrefix(inside4 + "/16"), netip.MustParsePrefix(inside6 + "/64")},
		Gateways:  []netip.Addr{netip.MustParseAddr(outside4), netip.MustParseAddr(outside6)},
	}
	if diff := cmp.Diff(fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", c)); diff != "" {
		t.Error(diff)
	}
	if mtu := r.Link(t, tapLink).Attrs().MTU; mtu != 1400 {
		t.Errorf("MTU of the tap %d", mtu)
	}
}

// What is sent to the workload comes to the tap and nowhere else, and what is
// written to the tap goes out: also after the network has been set again, and
// after another machine took over.
func TestCard(t *testing.T) {
	r := newRoom(t)
	c, tap := open(t, r)
	out := packets(t, "wl")
	host, err := net.InterfaceByName("wl")
	check(t, err)
	for _, stage := range []struct {
		name   string
		change func()
	}{
		{"new", func() {}},
		{"the network is set again", func() { r.connect(t) }},
		{"a machine comes after one that was killed", func() {
			check(t, c.Tap.Close())
			c, tap = open(t, r)
		}},
		{"a machine comes while the tap is still there", func() { c, tap = open(t, r) }},
	} {
		stage.change()
		// The namespace has the address and would answer within microseconds;
		// the tap's answer comes after its question.
		out.send(t, arp(1, host.HardwareAddr, outside4, broadcast, inside4))
		tap.expect(t, stage.name+": question at the tap", isARP(1))
		tap.send(t, arp(2, c.MAC, inside4, host.HardwareAddr, outside4))
		// The first answer is the only one that has our mark.
		marked := append(arp(2, c.MAC, inside4, host.HardwareAddr, outside4), []byte("from the guest")...)
		tap.send(t, marked)
		answers := 0
		out.expect(t, stage.name+": answer outside", func(f []byte) bool {
			if isARP(2)(f) {
				answers++
			}
			return bytes.Equal(f, marked)
		})
		if answers != 2 {
			t.Errorf("%s: %d answers, want the guest's two", stage.name, answers)
		}
		// The other family too.
		ping := append(append(append([]byte{}, c.MAC...), host.HardwareAddr...), 0x86, 0xdd)
		out.send(t, append(ping, []byte("no namespace would pass this on")...))
		tap.expect(t, stage.name+": IPv6 at the tap", func(f []byte) bool { return bytes.HasPrefix(f, ping) })
	}
}

// A namespace that lost its machine is as it was: the next one may be a
// container's.
func TestCloseCard(t *testing.T) {
	r := newRoom(t)
	c, _ := open(t, r)
	for range 2 {
		check(t, closeCard(r.path))
	}
	if _, err := r.Handle.LinkByName(tapLink); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("tap: %v", err)
	}
	c.Tap.Close()
	out := packets(t, "wl")
	host, err := net.InterfaceByName("wl")
	check(t, err)
	out.send(t, arp(1, host.HardwareAddr, outside4, broadcast, inside4))
	out.expect(t, "answer of the namespace", isARP(2))
	check(t, closeCard(filepath.Join(t.TempDir(), "gone")))
}

// A tap ends with the machine that has it.
func TestTapEnds(t *testing.T) {
	r := newRoom(t)
	c, _ := open(t, r)
	check(t, c.Tap.Close())
	if _, err := r.Handle.LinkByName(tapLink); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("tap: %v", err)
	}
}

func TestNoCard(t *testing.T) {
	r := room{nettest.New(t), filepath.Join(t.TempDir(), "ns")}
	check(t, os.WriteFile(r.path, nil, 0o600))
	check(t, unix.Mount(fmt.Sprintf("/proc/self/fd/%d", r.FD), r.path, "", unix.MS_BIND, ""))
	t.Cleanup(func() { check(t, unix.Unmount(r.path, unix.MNT_DETACH)) })
	if c, err := openCard(r.path); c != nil || err != nil {
		t.Errorf("got %v, %v", c, err)
	}
	check(t, closeCard(r.path))
	if _, err := openCard(filepath.Join(t.TempDir(), "gone")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no namespace: %v", err)
	}
}
