package microvm

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"capsule/internal/kmod"
)

// Links of a workload's namespace: the one that the network made, and ours.
const (
	cardLink = "eth0"
	tapLink  = "tap0"
)

// loadModules loads what the capsule's kernel needs for cards and vsocks: their
// devices are not there before, and a capsule without microVMs does without.
func (d *Driver) loadModules() error {
	if d.opts.Channel != VSock || d.loaded.Load() { // without vsock it is no capsule: they are built in
		return nil
	}
	modules, err := kmod.Open("/")
	if err == nil {
		err = modules.Load("tun", "sch_ingress", "cls_u32", "act_mirred", "vhost_vsock")
	}
	if err != nil {
		return fmt.Errorf("load modules for microVMs: %w", err)
	}
	d.loaded.Store(true)
	return nil
}

// card is a guest's network card. It stands for the link of the workload's
// namespace, with its addresses: all that comes in on the one goes out on the
// other, past the namespace itself, which keeps the addresses but hears nothing.
type card struct {
	Tap       *os.File // for QEMU; the link lasts as long as it is open
	MAC       net.HardwareAddr
	MTU       int
	Addresses []netip.Prefix
	Gateways  []netip.Addr
}

// openCard makes the card of the namespace pinned at path, anew if there was one;
// the machine that had it must be gone. It returns nil where there is no link to
// stand for.
func openCard(path string) (*card, error) {
	var c *card
	err := inNamespace(path, func(h *netlink.Handle) error {
		eth, err := h.LinkByName(cardLink)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		c, err = makeCard(h, eth)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network card in %s: %w", path, err)
	}
	return c, nil
}

// closeCard gives the link back to the namespace. Without a card, or a namespace,
// there is nothing to do.
func closeCard(path string) error {
	err := inNamespace(path, func(h *netlink.Handle) error {
		eth, err := h.LinkByName(cardLink)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		return errors.Join(clearIngress(h, eth), removeTap(h))
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network card in %s: %w", path, err)
	}
	return nil
}

// inNamespace calls fn on a thread of the namespace.
func inNamespace(path string, fn func(*netlink.Handle) error) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the namespace
		done <- func() error {
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
			if err != nil {
				return err
			}
			defer h.Close()
			return fn(h)
		}()
	}()
	return <-done
}

func makeCard(h *netlink.Handle, eth netlink.Link) (*card, error) {
	if err := removeTap(h); err != nil {
		return nil, err
	}
	c := &card{MAC: eth.Attrs().HardwareAddr, MTU: eth.Attrs().MTU}
	if err := c.learn(h, eth); err != nil {
		return nil, err
	}
	tap, err := openTap()
	if err != nil {
		return nil, fmt.Errorf("make link %q: %w", tapLink, err)
	}
	if err := join(h, eth, c.MTU); err != nil {
		return nil, errors.Join(err, tap.Close())
	}
	c.Tap = tap
	return c, nil
}

// learn reads the addresses and gateways that were given to the link.
func (c *card) learn(h *netlink.Handle, eth netlink.Link) error {
	addresses, err := h.AddrList(eth, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of %q: %w", cardLink, err)
	}
	for _, a := range addresses {
		if p, ok := prefix(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() { // the guest makes its own
			c.Addresses = append(c.Addresses, p)
		}
	}
	routes, err := h.RouteList(eth, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("routes of %q: %w", cardLink, err)
	}
	for _, r := range routes {
		gateway, ok := netip.AddrFromSlice(r.Gw)
		if to, isNet := prefix(r.Dst); ok && (r.Dst == nil || isNet && to.Bits() == 0) {
			c.Gateways = append(c.Gateways, gateway.Unmap())
		}
	}
	return nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok
}

// removeTap removes what a machine before left, if it is still there.
func removeTap(h *netlink.Handle) error {
	tap, err := h.LinkByName(tapLink)
	if err == nil {
		err = h.LinkDel(tap)
	}
	if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %q left over: %w", tapLink, err)
	}
	return nil
}

// openTap makes the link in the namespace of the thread. Packets may be longer
// than the link carries, and without checksums, as between containers.
func openTap() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(tapLink)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), tapLink), nil
}

// join leads all that comes in on either link out of the other.
func join(h *netlink.Handle, eth netlink.Link, mtu int) error {
	// It is no link for the namespace's own use.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+tapLink+"/disable_ipv6", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	tap, err := h.LinkByName(tapLink)
	if err != nil {
		return fmt.Errorf("find link %q: %w", tapLink, err)
	}
	if err := h.LinkSetMTU(tap, mtu); err != nil {
		return fmt.Errorf("set MTU of link %q: %w", tapLink, err)
	}
	if err := h.LinkSetUp(tap); err != nil {
		return fmt.Errorf("bring up link %q: %w", tapLink, err)
	}
	return errors.Join(redirect(h, eth, tap), redirect(h, tap, eth))
}

// redirect leads all that comes in on one link out of another.
func redirect(h *netlink.Handle, from, to netlink.Link) error {
	if err := clearIngress(h, from); err != nil {
		return err
	}
	if err := h.QdiscAdd(ingress(from)); err != nil {
		return fmt.Errorf("take over what comes in on %q: %w", from.Attrs().Name, err)
	}
	all := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: ingressHandle, Priority: 1, Protocol: unix.ETH_P_ALL},
		RedirIndex:  to.Attrs().Index,
	}
	if err := h.FilterAdd(all); err != nil {
		return fmt.Errorf("lead what comes in on %q to %q: %w", from.Attrs().Name, to.Attrs().Name, err)
	}
	return nil
}

// ingressHandle is that of the one ingress queue that a link can have.
var ingressHandle = netlink.MakeHandle(0xffff, 0)

func ingress(l netlink.Link) *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: ingressHandle, Parent: netlink.HANDLE_INGRESS}}
}

// clearIngress removes a redirection if there is one.
func clearIngress(h *netlink.Handle, l netlink.Link) error {
	err := h.QdiscDel(ingress(l))
	// What the kernel says of none depends on whether there ever was one.
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("give back what comes in on %q: %w", l.Attrs().Name, err)
	}
	return nil
}
