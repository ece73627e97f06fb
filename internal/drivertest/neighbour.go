package drivertest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"capsule/internal/workload"
)

// Neighbour is another machine on the network of one instance, with nothing in
// between: an Ethernet pair whose end is "eth0" on the instance's side, as
// package network makes it.
type Neighbour struct {
	Network  workload.Network // of the instance
	Instance []netip.Addr     // its addresses, of both families
	Own      []netip.Addr     // the neighbour's
	ns       netns.NsHandle
}

// Addresses of the pair; the networks are the documentation's (RFC 5737, 3849).
var (
	neighbourPrefixes = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}
	instancePrefixes  = []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64")}
)

// NewNeighbour makes both ends; the instance's namespace and its files are kept
// in a folder. The instance asks the neighbour for names.
func NewNeighbour(t *testing.T, dir, name string) *Neighbour {
	t.Helper()
	n := &Neighbour{}
	for _, p := range neighbourPrefixes {
		n.Own = append(n.Own, p.Addr())
	}
	for _, p := range instancePrefixes {
		n.Instance = append(n.Instance, p.Addr())
	}
	n.Network = workload.Network{
		Mode: "bridge", NetNS: filepath.Join(dir, "netns"), Hostname: name,
		ResolvConf: filepath.Join(dir, "resolv.conf"), Hosts: filepath.Join(dir, "hosts"),
	}
	for path, text := range map[string]string{
		n.Network.ResolvConf: fmt.Sprintf("nameserver %s\n", n.Own[0]), n.Network.Hosts: "127.0.0.1 localhost\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.connect(); err != nil {
		t.Fatalf("drivertest: network: %v", err)
	}
	t.Cleanup(func() {
		n.ns.Close()
		_ = unix.Unmount(n.Network.NetNS, unix.MNT_DETACH)
	})
	return n
}

func (n *Neighbour) connect() error {
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		n.ns, err = netns.GetFromPath("/proc/thread-self/ns/net")
		return err
	})
	if err == nil {
		err = MakeNetNS(n.Network.NetNS)
	}
	if err != nil {
		return err
	}
	inside, err := netns.GetFromPath(n.Network.NetNS)
	if err != nil {
		return err
	}
	defer inside.Close()
	return n.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		pair := netlink.NewVeth(attrs)
		pair.PeerName, pair.PeerNamespace = "eth0", netlink.NsFd(int(inside))
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		outer, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer outer.Close()
		inner, err := netlink.NewHandleAt(inside)
		if err != nil {
			return err
		}
		defer inner.Close()
		return errors.Join(configure(outer, neighbourPrefixes, nil), configure(inner, instancePrefixes, neighbourPrefixes))
	})
}

// configure brings up eth0 with its addresses and default routes.
func configure(h *netlink.Handle, own, routers []netip.Prefix) error {
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(eth); err != nil {
		return err
	}
	for _, p := range own {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Flags: unix.IFA_F_NODAD}
		if err := h.AddrAdd(eth, a); err != nil {
			return err
		}
	}
	for _, r := range routers {
		all := &net.IPNet{IP: make(net.IP, r.Addr().BitLen()/8), Mask: net.CIDRMask(0, r.Addr().BitLen())}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: all, Gw: r.Addr().AsSlice()}); err != nil {
			return err
		}
	}
	return nil
}

// Do calls fn on a thread of the neighbour. Sockets that it opens stay there.
func (n *Neighbour) Do(fn func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.ns); err != nil {
			return err
		}
		return fn()
	})
}

// MakeNetNS keeps a new network namespace, with loopback up, at path.
func MakeNetNS(path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
}

// onThread calls fn on a thread that is spoilt by it and ends after it.
func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- fn()
	}()
	return <-done
}
