package uplink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"capsule/internal/await"
	"capsule/internal/links"
)

const (
	// dadMax is how long the kernel is given to find out whether others have an IPv6
	// address (RFC 4862, 5.4): about two seconds on its own terms.
	dadMax  = 5 * time.Second
	dadLook = 50 * time.Millisecond
	// settleAgain is between tries at what could not be had.
	settleAgain = 10 * time.Second
)

// found is what became of what is declared of a link.
type found struct {
	conflicts []string // addresses that somebody else has
	problems  []string // all else that is not as declared
	tried     bool     // as far as it can be
}

// keeper makes a link have what is declared for it, for as long as it takes.
type keeper struct {
	link    string
	static  bool // anything is
	settle  func(context.Context) found
	report  func(found)
	carrier <-chan carrier
	now     carrier
}

// run works until ctx ends; addresses stay. ready is called once, when what is
// declared was tried for the first time.
func (k *keeper) run(ctx context.Context, ready func()) {
	for {
		again := forever
		f := found{tried: true}
		if k.now.up || !k.static {
			f = k.settle(ctx)
		} else {
			f.problems = []string{noCarrier(k.link)} // nobody is there to ask
		}
		if ctx.Err() != nil {
			return
		}
		k.report(f)
		if ready != nil {
			ready()
			ready = nil
		}
		if k.static && k.now.up && len(f.conflicts)+len(f.problems) > 0 {
			again = settleAgain
		}
		if !k.wait(ctx, again) {
			return
		}
	}
}

// wait returns at a change of the carrier, or after a time; false when ctx ends.
func (k *keeper) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case now := <-k.carrier:
			if now != k.now {
				k.now = now
				return true
			}
		}
	}
}

func noCarrier(link string) string {
	return fmt.Sprintf("link %q has no carrier: cable unplugged, or the other end is off", link)
}

// settle gives a link what is declared. What it has beyond that is for tidy.
func settle(ctx context.Context, l netlink.Link, c LinkConfig) (f found) {
	f.tried = true
	name := l.Attrs().Name
	have, err := links.Addresses(l, netlink.FAMILY_ALL)
	if err != nil {
		f.problem("list addresses of link %q: %w", name, err)
		return f
	}
	for _, p := range c.Addresses {
		if holds(have, p) {
			continue
		}
		if err := addStatic(ctx, l, p, &f); err != nil {
			f.problem("add address %s to link %q: %w", p, name, ipv6Off(err))
		}
	}
	f.problemOf(awaitDAD(ctx, l, c, &f))
	if len(f.conflicts) > 0 || ctx.Err() != nil {
		return f
	}
	for _, gateway := range c.Gateways {
		f.problemOf(setStaticRoute(l, c, gateway))
	}
	return f
}

func (f *found) problem(format string, args ...any) { f.problemOf(fmt.Errorf(format, args...)) }

func (f *found) problemOf(err error) {
	if err != nil {
		f.problems = append(f.problems, err.Error())
	}
}

func (f *found) conflict(p netip.Prefix, link, who string) {
	f.conflicts = append(f.conflicts, conflictText(p, link, who))
}

func conflictText(p netip.Prefix, link, who string) string {
	if who != "" {
		who = ", the one with hardware address " + who
	}
	return fmt.Sprintf("address %s of link %q is taken by another machine%s", p.Addr(), link, who)
}

// ipv6Off has the kernel's errors say what is behind them.
func ipv6Off(err error) error {
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("IPv6 is switched off in the kernel (%w)", err)
	}
	return err
}

// holds tells whether a link has an address in that network already, for good.
func holds(have []netlink.Addr, p netip.Prefix) bool {
	return slices.ContainsFunc(have, func(a netlink.Addr) bool {
		return prefixOf(a) == p && a.Flags&unix.IFA_F_PERMANENT != 0 && a.Flags&unix.IFA_F_DADFAILED == 0
	})
}

func prefixOf(a netlink.Addr) netip.Prefix {
	ones, _ := a.Mask.Size()
	return netip.PrefixFrom(addrOf(a), ones)
}

func addrOf(a netlink.Addr) netip.Addr {
	ip, _ := netip.AddrFromSlice(a.IP)
	return ip.Unmap()
}

// addStatic adds an address unless somebody has it. The kernel asks by itself in
// IPv6.
func addStatic(ctx context.Context, l netlink.Link, p netip.Prefix, f *found) error {
	name := l.Attrs().Name
	if p.Addr().Is4() {
		who, err := probe(ctx, name, p.Addr())
		if err != nil {
			return err
		}
		if who != nil {
			f.conflict(p, name, who.String())
			return nil
		}
	}
	err := netlink.AddrReplace(l, &netlink.Addr{IPNet: ipNet(p)})
	if err != nil || p.Addr().Is6() {
		return err
	}
	return announce(name, p.Addr())
}

// awaitDAD waits until the kernel knows whether the link's IPv6 addresses are its own.
func awaitDAD(ctx context.Context, l netlink.Link, c LinkConfig, f *found) error {
	ctx, cancel := context.WithTimeout(ctx, dadMax)
	defer cancel()
	for {
		have, err := links.Addresses(l, netlink.FAMILY_V6)
		if err != nil {
			return fmt.Errorf("list addresses of link %q: %w", l.Attrs().Name, err)
		}
		tentative := false
		for _, a := range have {
			if !slices.Contains(c.Addresses, prefixOf(a)) {
				continue
			}
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				f.conflict(prefixOf(a), l.Attrs().Name, "")
				if err := netlink.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
					return fmt.Errorf("remove address %s of link %q: %w", a.IPNet, l.Attrs().Name, err)
				}
				continue
			}
			tentative = tentative || a.Flags&unix.IFA_F_TENTATIVE != 0
		}
		if !tentative {
			return nil
		}
		if await.Pause(ctx, dadLook) != nil {
			return nil //nolint:nilerr // it is used once the kernel is through
		}
	}
}

// metricStatic of default routes by a declared gateway, plus the link's index: they
// go before those of leases and of routers.
const metricStatic = 512

func staticRoute(l netlink.Link, gateway netip.Addr) *netlink.Route {
	everywhere := netip.IPv4Unspecified()
	if gateway.Is6() {
		everywhere = netip.IPv6Unspecified()
	}
	return &netlink.Route{
		LinkIndex: l.Attrs().Index,
		Dst:       ipNet(netip.PrefixFrom(everywhere, 0)),
		Gw:        gateway.AsSlice(),
		Priority:  metricStatic + l.Attrs().Index,
		Protocol:  unix.RTPROT_STATIC,
	}
}

func setStaticRoute(l netlink.Link, c LinkConfig, gateway netip.Addr) error {
	route := staticRoute(l, gateway)
	switch source := c.source(gateway); {
	case source.Is4():
		route.Src = source.AsSlice()
	case !source.IsValid() && !gateway.IsLinkLocalUnicast():
		route.Flags = int(netlink.FLAG_ONLINK)
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("set default route by %s on link %q: %w", gateway, l.Attrs().Name, ipv6Off(err))
	}
	return nil
}

// tidy takes away what the link has and what is not declared: addresses, default
// routes. What DHCP and routers give stays where they are listened to; the leased
// address is the zero one when there is none.
func tidy(l netlink.Link, c LinkConfig, leased netip.Addr) error {
	have, err := links.Addresses(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of link %q: %w", l.Attrs().Name, err)
	}
	var errs []error
	for _, a := range have {
		if a.Scope != unix.RT_SCOPE_UNIVERSE || c.owns(a, leased) {
			continue
		}
		if err := netlink.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove address %s of link %q: %w", a.IPNet, l.Attrs().Name, err))
		}
	}
	return errors.Join(append(errs, tidyRoutes(l, c))...)
}

// owns tells whether the link may have an address.
func (c LinkConfig) owns(a netlink.Addr, leased netip.Addr) bool {
	switch p := prefixOf(a); {
	case slices.Contains(c.Addresses, p):
		return true
	case p.Addr().Is4():
		return p.Addr() == leased && !c.NoDHCP
	}
	// The kernel sets the flag on what it makes of an advertised prefix.
	return a.Flags&unix.IFA_F_MANAGETEMPADDR != 0 && !c.NoAdverts
}

func tidyRoutes(l netlink.Link, c LinkConfig) error {
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{LinkIndex: l.Attrs().Index}, netlink.RT_FILTER_OIF)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list routes of link %q: %w", l.Attrs().Name, err)
		}
		for _, r := range routes {
			if !c.disownsRoute(r) {
				continue
			}
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("remove default route by %s of link %q: %w", r.Gw, l.Attrs().Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (c LinkConfig) disownsRoute(r netlink.Route) bool {
	if r.Gw == nil {
		return false
	}
	switch r.Protocol {
	case unix.RTPROT_STATIC:
		gateway, _ := netip.AddrFromSlice(r.Gw)
		return !slices.Contains(c.Gateways, gateway.Unmap())
	case unix.RTPROT_DHCP:
		return c.NoDHCP
	case unix.RTPROT_RA:
		return c.NoAdverts
	}
	return false
}

// listen has the kernel take router advertisements on a link, also though we
// forward (2), or not.
func listen(l netlink.Link, adverts bool) error {
	name, ra, auto := l.Attrs().Name, "0", "0"
	if adverts {
		ra, auto = "2", "1"
	}
	return sysctls([][2]string{{"ipv6/conf/" + name + "/accept_ra", ra}, {"ipv6/conf/" + name + "/autoconf", auto}})
}

func sysctls(list [][2]string) error {
	for _, s := range list {
		err := os.WriteFile(filepath.Join("/proc/sys/net", s[0]), []byte(s[1]), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // IPv6 may be off
			return fmt.Errorf("set net sysctl %s=%s: %w", s[0], s[1], err)
		}
	}
	return nil
}

// routerSolicitation has no options (RFC 4861, 4.1); the kernel fills in the checksum.
var routerSolicitation = []byte{133, 0, 0, 0, 0, 0, 0, 0}

// solicit asks routers to speak: the kernel asks only when a link comes up.
func solicit(ctx context.Context, link string) error {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var hops error // others are of another network, and not answered
		err := c.Control(func(fd uintptr) {
			hops = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255)
		})
		return errors.Join(err, hops, bindToLink(c, link))
	}}
	conn, err := config.ListenPacket(ctx, "ip6:ipv6-icmp", "::")
	if err != nil {
		return fmt.Errorf("ask for routers on link %q: %w", link, err)
	}
	defer conn.Close()
	if _, err := conn.WriteTo(routerSolicitation, &net.IPAddr{IP: net.IPv6linklocalallrouters, Zone: link}); err != nil {
		return fmt.Errorf("ask for routers on link %q: %w", link, err)
	}
	return nil
}
