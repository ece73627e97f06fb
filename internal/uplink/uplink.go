// Package uplink connects the capsule with the networks that its wired links
// lead to: it brings up every Ethernet link and gives it the addresses that are
// declared for it. Where nothing is, it keeps a DHCPv4 lease and lets the kernel
// take IPv6 addresses from router advertisements. It tries for ever, and knows
// nothing of workloads.
//
// Addresses outlive the daemon: the next one adopts them, leases from /run.
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
	"sync"
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

	// Number of the configuration that all of this follows, by Settings.Set; 0 as
	// long as it isn't tried yet on every link that has a carrier.
	Number uint64
	// Conflicts are declared addresses that another machine has, Problems all else
	// that is not as declared; each is a sentence.
	Conflicts, Problems []string
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
	Hostname func() string           // told to DHCP servers; nil tells none
	Settings *Settings               // what is declared; nil: nothing
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
	if opts.Hostname == nil {
		opts.Hostname = func() string { return "" }
	}
	if opts.OnChange == nil {
		opts.OnChange = func(State) {}
	}
	if opts.Settings == nil {
		opts.Settings = NewSettings(Config{})
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
	config  Config
	number  uint64 // of the configuration
}

// uplink is one link, what is declared of it, and the last words of who cares for it.
type uplink struct {
	link     netlink.Link // as it was found
	declared LinkConfig
	carriers []chan carrier // the client's and the keeper's
	cancel   context.CancelFunc
	done     chan struct{}
	lease    *Lease
	message  string
	found    found
	leasing  sync.Mutex // what is leased, remembered and on the link is the same
}

func (l *uplink) name() string { return l.link.Attrs().Name }

// report of the client, or of the keeper where there is something found.
type report struct {
	from    *uplink
	lease   *Lease
	message string
	found   *found
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
	u.config, u.number = u.opts.Settings.now()
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
		case <-u.opts.Settings.changed:
			u.follow(ctx)
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
		u.follow(ctx) // another may be the first now
	case gone:
	case !known && u.opts.Select(l):
		u.add(ctx, l)
	case known && l.Attrs().Flags&unix.IFF_UP == 0:
		// Somebody took it down: not what this machine is for.
		if err := netlink.LinkSetUp(l); err != nil {
			u.opts.Log.Warn("uplink: bring up link", "link", have.name(), "error", err)
		}
		have.tellCarrier(carrier{})
	case known:
		have.tellCarrier(carrierOf(l))
	}
}

// tellCarrier replaces what was not read yet.
func (l *uplink) tellCarrier(now carrier) {
	for _, c := range l.carriers {
		select {
		case <-c:
		default:
		}
		c <- now
	}
}

// all links of ours, the oldest first.
func (u *uplinks) all() (list []netlink.Link) {
	for _, index := range slices.Sorted(maps.Keys(u.links)) {
		list = append(list, u.links[index].link)
	}
	return list
}

// follow gives each link what is declared of it now.
func (u *uplinks) follow(ctx context.Context) {
	u.config, u.number = u.opts.Settings.now()
	plan, _ := u.config.plan(u.all())
	for index, declared := range plan {
		old := u.links[index]
		if reflect.DeepEqual(declared, old.declared) {
			continue
		}
		u.drop(index)
		now, err := netlink.LinkByIndex(index)
		if err != nil {
			u.opts.Log.Warn("uplink: look at link", "link", old.name(), "error", err)
			continue // it is gone, or comes with the next list
		}
		u.care(ctx, now, declared)
		if old.declared.NoAdverts && !declared.NoAdverts {
			if err := solicit(ctx, old.name()); err != nil {
				u.opts.Log.Warn("uplink", "error", err)
			}
		}
	}
}

// add takes a new link.
func (u *uplinks) add(ctx context.Context, l netlink.Link) {
	plan, _ := u.config.plan(append(u.all(), l))
	u.care(ctx, l, plan[l.Attrs().Index])
}

// care starts what keeps a link as declared.
func (u *uplinks) care(ctx context.Context, l netlink.Link, declared LinkConfig) {
	a := l.Attrs()
	if err := errors.Join(listen(l, !declared.NoAdverts), prepare(l)); err != nil {
		u.opts.Log.Warn("uplink: prepare link", "link", a.Name, "error", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	up := &uplink{link: l, declared: declared, cancel: cancel, done: make(chan struct{})}
	u.links[a.Index] = up
	k, c := u.keeper(ctx, up), u.client(ctx, up)
	go func() {
		defer close(up.done)
		ready := make(chan struct{})
		var both sync.WaitGroup
		both.Go(func() { k.run(ctx, func() { close(ready) }) })
		select {
		case <-ready:
			if !declared.NoDHCP {
				c.run(ctx)
			}
		case <-ctx.Done():
		}
		both.Wait()
	}()
}

// carrier is a new place for what is told of a link's other end.
func (l *uplink) carrier() <-chan carrier {
	c := make(chan carrier, 1)
	l.carriers = append(l.carriers, c)
	return c
}

// memory of a link's lease.
func (u *uplinks) memory(l *uplink) memory {
	return memory{filepath.Join(u.opts.RunDir, l.name()+".json")}
}

// keeper of what is declared of a link. Without anything it takes away what was.
func (u *uplinks) keeper(ctx context.Context, up *uplink) *keeper {
	mem, hardware := u.memory(up), up.link.Attrs().HardwareAddr.String()
	return &keeper{
		link:    up.name(),
		static:  up.declared.static(),
		now:     carrierOf(up.link),
		carrier: up.carrier(),
		settle: func(ctx context.Context) found {
			f := settle(ctx, up.link, up.declared)
			if len(f.conflicts) > 0 || ctx.Err() != nil {
				return f // the new first: as long as it isn't had, the old stays
			}
			up.leasing.Lock()
			defer up.leasing.Unlock()
			var leased netip.Addr
			if lease := mem.load(hardware); lease != nil {
				leased = lease.Address.Addr()
			}
			f.problemOf(tidy(up.link, up.declared, leased))
			return f
		},
		report: func(f found) { u.send(ctx, report{from: up, found: &f}) },
	}
}

// client of a link's DHCP server.
func (u *uplinks) client(ctx context.Context, up *uplink) *client {
	a := up.link.Attrs()
	mem, hardware := u.memory(up), a.HardwareAddr.String()
	c := &client{
		link:    a.Name,
		now:     carrierOf(up.link),
		ask:     dhcp{link: a.Name, hardware: a.HardwareAddr, hostname: u.opts.Hostname}.request,
		carrier: up.carrier(),
		apply: func(lease *Lease) error {
			up.leasing.Lock()
			defer up.leasing.Unlock()
			// First, so that a kill in between leaves nothing unknown.
			if err := mem.save(hardware, lease); err != nil {
				return err
			}
			return configure(up.link, lease, up.declared, u.opts.Log)
		},
		report: func(lease *Lease, message string) {
			u.log(a.Name, lease, message)
			u.send(ctx, report{from: up, lease: lease, message: message})
		},
	}
	c.lease = mem.load(hardware)
	return c
}

func (u *uplinks) send(ctx context.Context, r report) {
	select {
	case u.reports <- r:
	case <-ctx.Done():
	}
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
	l := r.from
	if r.found == nil {
		l.lease, l.message = r.lease, r.message
		return
	}
	if !reflect.DeepEqual(l.found, *r.found) {
		for _, text := range slices.Concat(r.found.conflicts, r.found.problems) {
			u.opts.Log.Info("uplink: not as declared", "reason", text)
		}
	}
	l.found = *r.found
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
	s := State{Number: u.number, Domain: u.config.Domain}
	for _, index := range slices.Sorted(maps.Keys(u.links)) {
		l := u.links[index]
		if !l.found.tried {
			s.Number = 0
		}
		u.join(&s, index, l)
	}
	_, missing := u.config.plan(u.all())
	s.Problems = append(s.Problems, missing...)
	if len(u.config.DNS) > 0 {
		s.DNS = u.config.DNS
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

// join adds what one link has.
func (u *uplinks) join(s *State, index int, l *uplink) {
	addresses := global(index)
	s.Links = append(s.Links, Link{index, l.name(), addresses})
	s.Addresses = append(s.Addresses, addresses...)
	if !l.declared.NoAdverts {
		s.DNS = appendNew(s.DNS, u.servers.of(index, time.Now()))
	}
	if l.lease != nil {
		s.DNS = appendNew(l.lease.DNS, s.DNS)
		s.NTP = appendNew(s.NTP, l.lease.NTP)
		if s.Domain == "" {
			s.Domain = l.lease.Domain
		}
	}
	s.Conflicts = append(s.Conflicts, l.found.conflicts...)
	s.Problems = append(s.Problems, l.found.problems...)
	for _, message := range slices.Concat(l.found.conflicts, l.found.problems, []string{l.message}) {
		if s.Message == "" {
			s.Message = message
		}
	}
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
