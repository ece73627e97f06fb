package uplink

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/links"
)

// Config is what is declared of the uplinks. A link that it does not name asks by
// DHCP and listens to routers, and so do all of an empty one.
type Config struct {
	Links []LinkConfig
	// DNS are asked instead of the servers of all links.
	DNS []netip.Addr
	// Domain is searched instead of that of a lease; "" is none.
	Domain string
}

// LinkConfig is what is declared of one link.
type LinkConfig struct {
	// Link is a name, or the address of the hardware, which goes before a name; ""
	// is the first link, and the only one that anything is declared of.
	Link string
	// Addresses that it has for good, of either family.
	Addresses []netip.Prefix
	// Gateways are at most one of each family.
	Gateways []netip.Addr
	// NoDHCP and NoAdverts: it doesn't ask by DHCP, or listen to routers.
	NoDHCP, NoAdverts bool
}

// ConfigOf reads what was declared, and checked when it was; what can't be read all
// the same is left out.
func ConfigOf(n *v1.CapsuleNetwork) Config {
	c := Config{DNS: parsed(n.GetDns(), netip.ParseAddr), Domain: domain(n.GetDomain())}
	for _, l := range n.GetLinks() {
		one := LinkConfig{
			Link:      l.GetLink(),
			Addresses: parsed(l.GetAddresses(), netip.ParsePrefix),
			Gateways:  parsed(l.GetGateways(), netip.ParseAddr),
			NoAdverts: l.Autoconf != nil && !l.GetAutoconf(),
		}
		fixed := slices.ContainsFunc(one.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() })
		one.NoDHCP = fixed && l.Dhcp == nil || l.Dhcp != nil && !l.GetDhcp()
		c.Links = append(c.Links, one)
	}
	return c
}

func parsed[T any](list []string, parse func(string) (T, error)) (good []T) {
	for _, s := range list {
		if one, err := parse(s); err == nil {
			good = append(good, one)
		}
	}
	return good
}

// static tells whether there is anything to keep but leases.
func (c LinkConfig) static() bool { return len(c.Addresses)+len(c.Gateways) > 0 }

// has tells whether an address is declared.
func (c LinkConfig) has(a netip.Addr) bool {
	return slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
}

// source is the declared address that a gateway is a neighbour of; the zero one when
// it is of none, as on links of a single address.
func (c LinkConfig) source(gateway netip.Addr) netip.Addr {
	for _, p := range c.Addresses {
		if p.Contains(gateway) {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// of is the place in Links of what is declared of a link; -1 for nothing. first tells
// that no other link was there before it.
func (c Config) of(l netlink.Link, first bool) int {
	a := l.Attrs()
	at := func(want string) int {
		return slices.IndexFunc(c.Links, func(one LinkConfig) bool { return one.Link == want })
	}
	if i := at(a.HardwareAddr.String()); i >= 0 && len(a.HardwareAddr) > 0 {
		return i
	}
	if i := at(a.Name); i >= 0 {
		return i
	}
	if first {
		return at("")
	}
	return -1
}

// plan gives each of all links, in their order, what is declared of it, and says of
// what is declared of none.
func (c Config) plan(all []netlink.Link) (plan map[int]LinkConfig, missing []string) {
	plan = map[int]LinkConfig{}
	meant := map[int]bool{}
	for i, l := range all {
		plan[l.Attrs().Index] = LinkConfig{}
		if at := c.of(l, i == 0); at >= 0 {
			plan[l.Attrs().Index], meant[at] = c.Links[at], true
		}
	}
	for i, one := range c.Links {
		if !meant[i] {
			missing = append(missing, one.missing(all))
		}
	}
	return plan, missing
}

func (c LinkConfig) missing(have []netlink.Link) string {
	there := "no wired one is"
	if len(have) > 0 {
		there = "there is " + namesOf(have)
	}
	return fmt.Sprintf("link %q is not there, and what is declared of it waits for it; %s, by DHCP where nothing else is declared", c.Link, there)
}

func namesOf(all []netlink.Link) string {
	var names []string
	for _, l := range all {
		names = append(names, fmt.Sprintf("%q (%s)", l.Attrs().Name, l.Attrs().HardwareAddr))
	}
	return strings.Join(names, ", ")
}

// Settings tell Run what is declared, now and at each change.
type Settings struct {
	mu      sync.Mutex
	config  Config
	number  uint64
	changed chan struct{}
}

// NewSettings begins with a configuration.
func NewSettings(c Config) *Settings {
	return &Settings{config: c, number: 1, changed: make(chan struct{}, 1)}
}

// Set changes it, and gives the number by which State names it.
func (s *Settings) Set(c Config) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config = c
	s.number++
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return s.number
}

func (s *Settings) now() (Config, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.config, s.number
}

// look compares a configuration with the links of this machine, and asks the networks
// around, before anything is changed, whether somebody has an IPv4 address of it.
// Those of IPv6 the kernel asks for once they are there.
func look(ctx context.Context, c Config, ours func(netlink.Link) bool) (warnings []string, err error) {
	all, err := links.List()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	all = slices.DeleteFunc(all, func(l netlink.Link) bool { return !ours(l) })
	if len(all) > 1 && len(c.Links) == 1 && c.Links[0].Link == "" {
		return nil, fmt.Errorf("network.links[0].link is missing: there is more than one wired link, %s: %w", namesOf(all), errdefs.ErrInvalidArgument)
	}
	plan, missing := c.plan(all)
	return missing, conflicts(ctx, plan, all)
}

func conflicts(ctx context.Context, plan map[int]LinkConfig, all []netlink.Link) error {
	var asked sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, l := range all {
		for _, p := range plan[l.Attrs().Index].Addresses {
			if !p.Addr().Is4() || !carrierOf(l).up { // nobody is there to ask
				continue
			}
			asked.Go(func() {
				err := conflict(ctx, l, p)
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
		}
	}
	asked.Wait()
	return errors.Join(errs...)
}

// conflict asks who has an address, unless it is this machine.
func conflict(ctx context.Context, l netlink.Link, p netip.Prefix) error {
	have, err := links.Addresses(l, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of link %q: %w", l.Attrs().Name, err)
	}
	if slices.ContainsFunc(have, func(a netlink.Addr) bool { return addrOf(a) == p.Addr() }) {
		return nil
	}
	who, err := probe(ctx, l.Attrs().Name, p.Addr())
	if who != nil {
		return fmt.Errorf("%s; choose another: %w", conflictText(p, l.Attrs().Name, who.String()), errdefs.ErrFailedPrecondition)
	}
	return err
}
