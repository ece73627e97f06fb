package guest

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	guestv1 "capsule/api/capsule/guest/v1"
)

// cardName is what a payload's card is called, in a container too.
const cardName = "eth0"

// setNetwork brings up the loopback and the card, if there is one.
func setNetwork(hostname string, card *guestv1.Interface) error {
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set host name %q: %w", hostname, err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring up the loopback: %w", err)
	}
	if len(card.GetHardwareAddress()) == 0 {
		return nil
	}
	if err := setCard(card); err != nil {
		return fmt.Errorf("set up network card %v: %w", net.HardwareAddr(card.GetHardwareAddress()), err)
	}
	return nil
}

func setCard(card *guestv1.Interface) error {
	link, err := findCard(card.GetHardwareAddress())
	if err != nil {
		return err
	}
	if link.Attrs().Name != cardName {
		if err := netlink.LinkSetName(link, cardName); err != nil {
			return err
		}
	}
	if mtu := card.GetMtu(); mtu > 0 {
		if err := netlink.LinkSetMTU(link, int(mtu)); err != nil {
			return fmt.Errorf("set its MTU to %d: %w", mtu, err)
		}
	}
	// Addresses are usable at once: the capsule has given them to nobody else.
	for _, name := range []string{"accept_ra", "accept_dad"} {
		if err := set("/proc/sys/net/ipv6/conf/"+cardName+"/"+name, "0"); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, text := range card.GetAddresses() {
		if err := addAddress(link, text); err != nil {
			return fmt.Errorf("address %q: %w", text, err)
		}
	}
	for _, text := range card.GetGateways() {
		if err := addGateway(link, text); err != nil {
			return fmt.Errorf("gateway %q: %w", text, err)
		}
	}
	return nil
}

// findCard gives the card with the hardware address.
func findCard(address []byte) (link netlink.Link, err error) {
	awaitErr := awaitDevice(disksMax, func() bool {
		var all []netlink.Link
		all, err = netlink.LinkList()
		for _, l := range all {
			if bytes.Equal(l.Attrs().HardwareAddr, address) {
				link = l
			}
		}
		return err != nil || link != nil
	})
	if awaitErr != nil {
		return nil, awaitErr
	}
	return link, err
}

func addAddress(link netlink.Link, text string) error {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	bits := prefix.Addr().BitLen()
	return netlink.AddrReplace(link, &netlink.Addr{IPNet: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), bits)}})
}

func addGateway(link netlink.Link, text string) error {
	gateway, err := netip.ParseAddr(text)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	bits := gateway.BitLen()
	all := &net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: all, Gw: gateway.AsSlice()})
}

const (
	resolvConf = "/run/resolv.conf"
	hosts      = "/run/hosts"
)

// writeFile replaces a file's content in place: the payload sees this file
// mounted, not this name. The old end goes last, so that nobody reads it empty.
func writeFile(name string, content []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(content, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(content)))
}
