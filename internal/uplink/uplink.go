// Package uplink connects the capsule with the networks that its wired links
// lead to: it brings up every Ethernet link, keeps a DHCPv4 lease on each and
// lets the kernel take IPv6 addresses from router advertisements. It tries for
// ever, and knows nothing of workloads.
//
// Addresses outlive the daemon: the next one adopts them from /run.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"capsule/internal/links"
)

// State is what the uplinks have together; the first link comes first.
type State struct {
	Links     []Link
	Addresses []netip.Prefix // global ones of both families
	DNS       []netip.Addr
	NTP       []netip.Addr
	Domain    string
	Message   string // why there is no address; "" when there is one
}

// Link is one uplink, with an address or without.
type Link struct {
	Index     int
	Name      string
	Addresses []netip.Prefix // global ones of both families
}

// Options of Run; zero values have a default.
type Options struct {
	OnChange func(State)             // called for each change, never at the same time
	Hostname string                  // told to DHCP servers
	RunDir   string                  // of leases, default /run/capsule/uplink
	Select   func(netlink.Link) bool // links to use, default all wired Ethernet
	Log      *slog.Logger
}

// resubscribe is how long to wait before netlink is asked anew.
const resubscribe = time.Second

// Run works until ctx ends, and leaves addresses as they are then.
func Run(ctx context.Context, opts Options) error {
	if opts.RunDir == "" {
		opts.RunDir = "/run/capsule/uplink"
	}
	if opts.Select == nil {
		opts.Select = wired
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.OnChange == nil {
		opts.OnChange = func(State) {}
	}
	ctx, cancel := context.WithCancel(ctx)
	u := &uplinks{opts: opts, links: map[int]*uplink{}, reports: make(chan report), servers: rdnss{}}
	defer u.stop()
	defer cancel()
	for {
		err := u.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		opts.Log.Warn("uplink: follow links", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(resubscribe):
		}
	}
}

// uplinks is owned by the goroutine of Run.
type uplinks struct {
	opts    Options
	links   map[int]*uplink // by index
	reports chan report
	servers rdnss
	told    *State
}

// uplink is one link and its client's last words.
type uplink struct {
	name    string
	carrier chan carrier
	cancel  context.CancelFunc
	done    chan struct{}
	lease   *Lease
	message string
}

type report struct {
	index   int
	lease   *Lease
	message string
}

// watch follows links and addresses until the subscription breaks, which it
// does when events come faster than we read.
func (u *uplinks) watch(ctx context.Context) error {
	done := make(chan struct{})
	defer close(done)
	broken := make(chan error, 3)
	lost := func(err error) {
		select {
		case broken <- err:
		default:
		}
	}
	links, addrs := make(chan netlink.LinkUpdate), make(chan netlink.AddrUpdate)
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: lost}); err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: lost}); err != nil {
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	options, err := subscribeRDNSS(done, lost)
	if err != nil {
		return fmt.Errorf("subscribe to router advertisements: %w", err)
	}
	if err := u.list(ctx); err != nil {
		return err
	}
	expire := time.NewTimer(forever)
	defer expire.Stop()
	for {
		u.tell()
		expire.Reset(u.servers.next(time.Now()))
		select {
		case <-ctx.Done():
			return nil
		case err := <-broken:
			return err
		case e, ok := <-links:
			if !ok {
				return fmt.Errorf("subscription to links ended")
			}
			u.seen(ctx, e.Link, e.Header.Type == unix.RTM_DELLINK)
		case _, ok := <-addrs:
			if !ok {
				return fmt.Errorf("subscription to addresses ended")
			}
		case o := <-options:
			u.servers.learn(o, time.Now())
		case <-expire.C:
		case r := <-u.reports:
			u.heard(r)
		}
	}
}

// list takes the links that are there now, and drops the others.
func (u *uplinks) list(ctx context.Context) error {
	all, err := links.List()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	there := map[int]bool{}
	for _, l := range all {
		there[l.Attrs().Index] = true
		u.seen(ctx, l, false)
	}
	for index := range u.links {
		if !there[index] {
			u.drop(index)
		}
	}
	return nil
}

// seen takes news of a link.
func (u *uplinks) seen(ctx context.Context, l netlink.Link, gone bool) {
	index := l.Attrs().Index
	have, known := u.links[index]
	switch {
	case gone && known:
		u.drop(index)
	case gone:
	case !known && u.opts.Select(l):
		u.add(ctx, l)
	case known && l.Attrs().Flags&unix.IFF_UP == 0:
		// Somebody took it down: not what this machine is for.
		if err := netlink.LinkSetUp(l); err != nil {
			u.opts.Log.Warn("uplink: bring up link", "link", have.name, "error", err)
		}
		have.tellCarrier(carrier{})
	case known:
		have.tellCarrier(carrierOf(l))
	}
}

// tellCarrier replaces what the client has not read yet.
func (l *uplink) tellCarrier(now carrier) {
	select {
	case <-l.carrier:
	default:
	}
	l.carrier <- now
}

// add starts a client on the link.
func (u *uplinks) add(ctx context.Context, l netlink.Link) {
	a := l.Attrs()
	if err := prepare(l); err != nil {
		u.opts.Log.Warn("uplink: prepare link", "link", a.Name, "error", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	up := &uplink{name: a.Name, carrier: make(chan carrier, 1), cancel: cancel, done: make(chan struct{})}
	u.links[a.Index] = up
	mem := memory{filepath.Join(u.opts.RunDir, a.Name+".json")}
	hardware := a.HardwareAddr.String()
	c := &client{
		link:    a.Name,
		now:     carrierOf(l),
		ask:     dhcp{link: a.Name, hardware: a.HardwareAddr, hostname: u.opts.Hostname}.request,
		carrier: up.carrier,
		apply: func(lease *Lease) error {
			// First, so that a kill in between leaves nothing unknown.
			if err := mem.save(hardware, lease); err != nil {
				return err
			}
			return configure(l, lease, u.opts.Log)
		},
		report: func(lease *Lease, message string) {
			u.log(a.Name, lease, message)
			select {
			case u.reports <- report{a.Index, lease, message}:
			case <-ctx.Done():
			}
		},
	}
	c.lease = mem.load(hardware)
	go func() {
		defer close(up.done)
		c.run(ctx)
	}()
}

func (u *uplinks) log(link string, lease *Lease, message string) {
	if lease == nil {
		u.opts.Log.Info("uplink: no address", "link", link, "reason", message)
		return
	}
	u.opts.Log.Info("uplink: lease", "link", link, "address", lease.Address, "router", lease.Router, "server", lease.Server, "expiry", lease.Expiry)
}

// drop forgets a link that is gone.
func (u *uplinks) drop(index int) {
	l := u.links[index]
	l.cancel()
	<-l.done
	delete(u.links, index)
	delete(u.servers, index)
}

func (u *uplinks) stop() {
	for index := range u.links {
		u.drop(index)
	}
}

func (u *uplinks) heard(r report) {
	if l, ok := u.links[r.index]; ok {
		l.lease, l.message = r.lease, r.message
	}
}

// tell calls OnChange when something changed.
func (u *uplinks) tell() {
	s := u.state()
	if u.told != nil && reflect.DeepEqual(*u.told, s) {
		return
	}
	u.told = &s
	u.opts.OnChange(s)
}

func (u *uplinks) state() State {
	var s State
	for _, index := range slices.Sorted(maps.Keys(u.links)) {
		l := u.links[index]
		addresses := global(index)
		s.Links = append(s.Links, Link{index, l.name, addresses})
		s.Addresses = append(s.Addresses, addresses...)
		s.DNS = appendNew(s.DNS, u.servers.of(index, time.Now()))
		if l.lease != nil {
			s.DNS = appendNew(l.lease.DNS, s.DNS)
			s.NTP = appendNew(s.NTP, l.lease.NTP)
			if s.Domain == "" {
				s.Domain = l.lease.Domain
			}
		}
		if l.message != "" && s.Message == "" {
			s.Message = l.message
		}
	}
	switch {
	case len(s.Addresses) > 0:
		s.Message = ""
	case len(u.links) == 0:
		s.Message = "no wired network link found"
	case s.Message == "":
		s.Message = "asking for an address by DHCP"
	}
	return s
}

// appendNew adds those that are not in the list yet.
func appendNew(list, more []netip.Addr) []netip.Addr {
	list = slices.Clone(list)
	for _, a := range more {
		if !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

// global are the addresses of a link that others can reach it by.
func global(index int) []netip.Prefix {
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return nil
	}
	addrs, err := links.Addresses(l, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // then it's nearly right, and an event comes
		return nil
	}
	var list []netip.Prefix
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED|unix.IFA_F_DEPRECATED) != 0 {
			continue
		}
		ones, _ := a.Mask.Size()
		list = append(list, netip.PrefixFrom(ip.Unmap(), ones))
	}
	return list
}
