// Package network is where workloads live on the network: the bridge and its
// addresses, one network namespace per workload, the one nftables table, and
// DNS for workloads. It never touches uplinks, and knows of a workload nothing
// but its name and its ports.
//
// Everything here outlives the daemon, and every method makes so what should
// be so, whatever is there: a new daemon calls New, Attach for each workload,
// Publish and Sync, and nothing that runs takes notice.
package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"capsule/internal/durable"
)

// KV is a durable map; a bucket of the store is one.
type KV interface {
	Get(key string) (value []byte, ok bool, err error)
	Put(key string, value []byte) error
	Delete(key string) error
	Each(fn func(key string, value []byte) error) error
}

// Options of a Network; zero values of all but Store have a default.
type Options struct {
	Store    KV      // addresses by workload name
	Subnets  Subnets // default DefaultSubnets
	Hostname string  // of the capsule, for its own hosts file, until SetHostname
	RunDir   string  // default /run/capsule
	NetNSDir string  // default /run/netns
	Log      *slog.Logger
}

// Network is the machine's only one.
type Network struct {
	opts Options
	ipv6 bool
	dns  *forwarder

	stopped  sync.Map // names of workloads whose name has no address
	hostname atomic.Pointer[string]

	mu        sync.Mutex
	last      uint16 // host number given last
	published []Published
	lan       []netip.Prefix // on-link by the uplinks
	flushed   *desired       // no flow contradicts it
	upstreams []netip.Addr
	domain    string
}

// Attachment is what an instance needs to know of its network.
type Attachment struct {
	NetNS      string // path; "" is the capsule's own
	ResolvConf string // path of the file shown as /etc/resolv.conf
	Hosts      string // path of the file shown as /etc/hosts
	Addresses  []netip.Addr
}

// New makes the bridge, the table when there is none, and serves DNS on the
// bridge until Close. Call it before an uplink gets an address: until then
// nothing filters.
func New(opts Options) (*Network, error) {
	if !opts.Subnets.IPv4.IsValid() {
		opts.Subnets = DefaultSubnets
	}
	if opts.RunDir == "" {
		opts.RunDir = "/run/capsule"
	}
	if opts.NetNSDir == "" {
		opts.NetNSDir = "/run/netns"
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	n := &Network{opts: opts, ipv6: hasIPv6()}
	n.hostname.Store(&opts.Hostname)
	if err := n.start(); err != nil {
		return nil, fmt.Errorf("set up workload network: %w", err)
	}
	return n, nil
}

func (n *Network) start() error {
	if err := n.choose(); err != nil {
		return err
	}
	all, err := n.held()
	if err != nil {
		return err
	}
	for _, a := range all {
		n.last = max(n.last, n.opts.Subnets.number(a))
	}
	exists, err := tableExists()
	if err != nil {
		return err
	}
	n.remember()
	if !exists {
		if err := applyRules(ruleset(n.desired(n.published, all))); err != nil {
			return err
		}
	}
	if err := ensureBridge(n.opts.Subnets, n.ipv6); err != nil {
		return err
	}
	// What the daemon before this one knew holds until the uplink says more.
	if content, err := os.ReadFile(n.hostResolvConf()); err == nil {
		n.upstreams = nameservers(content)
	}
	if err := n.writeFiles(); err != nil {
		return err
	}
	n.dns = newForwarder(n.gateways(), n.resolve, n.nameOf, n.opts.Log)
	n.dns.setUpstreams(n.upstreams)
	return nil
}

// Close ends DNS. All else stays as it is, for the next daemon.
func (n *Network) Close() error { return n.dns.close() }

func (n *Network) hostResolvConf() string { return filepath.Join(n.opts.RunDir, "resolv.conf") }
func (n *Network) hostHosts() string      { return filepath.Join(n.opts.RunDir, "hosts") }
func (n *Network) bridgeResolvConf() string {
	return filepath.Join(n.opts.RunDir, "net", "resolv.conf")
}
func (n *Network) netNS(name string) string     { return filepath.Join(n.opts.NetNSDir, name) }
func (n *Network) noneNetNS(name string) string { return n.netNS(name) + noneSuffix }
func (n *Network) folder(name string) string    { return filepath.Join(n.opts.RunDir, "net", name) }
func (n *Network) hostsPath(name string) string { return filepath.Join(n.folder(name), "hosts") }

// Attach gives a workload its place on the bridge. Its addresses stay the same
// until Detach. With denyLAN it reaches other workloads and the internet, but
// nothing on the networks around the capsule.
func (n *Network) Attach(ctx context.Context, name string, denyLAN bool) (Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, err := n.attach(name, denyLAN)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach workload %q to network: %w", name, err)
	}
	list := a.list(n.ipv6)
	return Attachment{NetNS: n.netNS(name), ResolvConf: n.bridgeResolvConf(), Hosts: n.hostsPath(name), Addresses: list}, nil
}

func (n *Network) attach(name string, denyLAN bool) (addresses, error) {
	_, known, err := n.lookup(name)
	if err != nil {
		return addresses{}, err
	}
	a, err := n.allocate(name)
	if err != nil {
		return a, err
	}
	if a.DenyLAN != denyLAN {
		a.DenyLAN = denyLAN
		if err := n.put(name, a); err != nil {
			return a, err
		}
		// Before it can send anything.
		if err := n.publish(n.published); err != nil {
			return a, err
		}
	}
	if err := createNetNS(n.netNS(name)); err != nil {
		return a, err
	}
	if err := n.ensureLink(name, n.netNS(name), a); err != nil {
		return a, err
	}
	if err := writeInPlace(n.hostsPath(name), hostsFile(map[string][]netip.Addr{name: a.list(n.ipv6)})); err != nil {
		return a, err
	}
	if err := n.writeFiles(); err != nil {
		return a, err
	}
	if known {
		return a, nil
	}
	return a, n.refresh(name)
}

// noneSuffix of the namespaces of AttachNone; names of workloads have no dot.
const noneSuffix = ".none"

// AttachNone gives a workload a network of its own with nothing but the
// loopback. It is another one than Attach makes, so that an instance there goes
// on until the new one replaces it; Detach removes both.
func (n *Network) AttachNone(name string) (Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at, err := n.attachNone(name)
	if err != nil {
		return Attachment{}, fmt.Errorf("make empty network of workload %q: %w", name, err)
	}
	return at, nil
}

func (n *Network) attachNone(name string) (Attachment, error) {
	ns := n.noneNetNS(name)
	if err := createNetNS(ns); err != nil {
		return Attachment{}, err
	}
	f, err := os.Open(ns)
	if err != nil {
		return Attachment{}, err
	}
	defer f.Close()
	inside, err := netlink.NewHandleAt(netns.NsHandle(f.Fd()))
	if err != nil {
		return Attachment{}, err
	}
	defer inside.Close()
	if err := loopbackUp(inside); err != nil {
		return Attachment{}, err
	}
	at := Attachment{NetNS: ns, ResolvConf: filepath.Join(n.folder(name), "resolv.conf"), Hosts: filepath.Join(n.folder(name), "hosts"+noneSuffix)}
	return at, errors.Join(writeInPlace(at.Hosts, hostsFile(nil)), writeInPlace(at.ResolvConf, nil))
}

// HostAttachment is for workloads that share the capsule's own network. Its
// files follow the uplink's DNS servers and the workloads' names.
func (n *Network) HostAttachment() Attachment {
	return Attachment{ResolvConf: n.hostResolvConf(), Hosts: n.hostHosts()}
}

// Detach takes a workload off the network and frees its addresses. Nothing of
// it may run any more.
func (n *Network) Detach(ctx context.Context, name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.detach(name); err != nil {
		return fmt.Errorf("detach workload %q from network: %w", name, err)
	}
	return nil
}

func (n *Network) detach(name string) error {
	a, known, err := n.lookup(name)
	if err != nil {
		return err
	}
	if known {
		if err := removeLink(n.hostLink(a)); err != nil {
			return err
		}
	}
	if err := errors.Join(removeNetNS(n.netNS(name)), removeNetNS(n.noneNetNS(name))); err != nil {
		return err
	}
	if err := os.RemoveAll(n.folder(name)); err != nil {
		return err
	}
	// Last, so that a kill before it leaves a name to come back by.
	if err := n.opts.Store.Delete(name); err != nil {
		return err
	}
	n.stopped.Delete(name)
	if err := n.writeFiles(); err != nil {
		return err
	}
	return n.refresh(name)
}

// Sync removes what is left of workloads other than those named.
func (n *Network) Sync(ctx context.Context, names []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	held, err := n.held()
	if err != nil {
		return err
	}
	gone := map[string]bool{}
	for name := range held {
		gone[name] = true
	}
	for _, dir := range []string{n.opts.NetNSDir, filepath.Join(n.opts.RunDir, "net")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if dir == n.opts.NetNSDir || e.IsDir() {
				gone[strings.TrimSuffix(e.Name(), noneSuffix)] = true
			}
		}
	}
	for name := range gone {
		if slices.Contains(names, name) {
			continue
		}
		if err := n.detach(name); err != nil {
			return fmt.Errorf("remove network left over of workload %q: %w", name, err)
		}
		delete(held, name)
	}
	stray, err := n.strayLinks(held)
	if err != nil {
		return err
	}
	for _, link := range stray {
		if err := removeLink(link); err != nil {
			return err
		}
	}
	return nil
}

// Publish makes the ports lead to their workloads, and no others. Flows through
// a port that stays are not touched. A port whose workload is not attached
// leads nowhere until it is.
func (n *Network) Publish(ctx context.Context, ports []Published) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	ports = slices.Clone(ports)
	for i := range ports {
		ports[i].Address = ports[i].Address.Unmap()
	}
	if err := n.publish(ports); err != nil {
		return fmt.Errorf("publish ports: %w", err)
	}
	n.published = ports
	return n.save()
}

func (n *Network) publish(ports []Published) error {
	held, err := n.held()
	if err != nil {
		return err
	}
	d := n.desired(ports, held)
	if err := applyRules(ruleset(d)); err != nil {
		return err
	}
	// Reading all flows takes long where there are many.
	if n.flushed != nil && reflect.DeepEqual(*n.flushed, d) {
		return nil
	}
	n.flushed = nil
	if err := flushStale(d); err != nil {
		return err
	}
	n.flushed = &d
	return nil
}

// refresh publishes again when the addresses of a workload changed that has
// ports.
func (n *Network) refresh(name string) error {
	if !slices.ContainsFunc(n.published, func(p Published) bool { return p.Workload == name }) {
		return nil
	}
	return n.publish(n.published)
}

// desired is what the table has to say for the ports.
func (n *Network) desired(ports []Published, held map[string]addresses) desired {
	d := desired{Bridge: bridgeName, Net: n.opts.Subnets, IPv6: n.ipv6, LAN: n.lan}
	for _, a := range held {
		if a.DenyLAN {
			d.Denied = append(d.Denied, a)
		}
	}
	slices.SortFunc(d.Denied, func(a, b addresses) int { return a.IPv4.Compare(b.IPv4) })
	for _, p := range ports {
		a, attached := held[p.Workload]
		switch {
		case p.Host:
			d.Ports = append(d.Ports, forward{Published: p})
		case attached:
			d.Ports = append(d.Ports, forward{p, a.list(n.ipv6)})
		}
	}
	return d
}

// SetUpstreams names the DNS servers that know the rest of the world, best
// first. They hold at once, for running workloads too. None changes nothing: a
// server of before may answer, nobody cannot.
func (n *Network) SetUpstreams(servers []netip.Addr) error {
	if len(servers) == 0 {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.upstreams = slices.Clone(servers)
	n.dns.setUpstreams(servers)
	return n.writeFiles()
}

// SetLAN tells the networks that the uplinks reach without a router. None changes
// nothing: an uplink that lost its address has no neighbours.
func (n *Network) SetLAN(nets []netip.Prefix) error {
	nets = disjoint(nets)
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(nets) == 0 || slices.Equal(nets, n.lan) {
		return nil
	}
	before := n.lan
	n.lan = nets
	if err := n.publish(n.published); err != nil {
		n.lan = before // to be tried again
		return fmt.Errorf("follow the networks of the uplinks: %w", err)
	}
	return errors.Join(n.save(), n.keep(surroundings{Bridge: n.opts.Subnets.IPv4, Bridge6: n.opts.Subnets.IPv6, LAN: n.lan}))
}

// SetStopped says whether a workload is stopped or has ended for good: then its
// name stays known and has no address.
func (n *Network) SetStopped(name string, stopped bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, was := n.stopped.Load(name); was == stopped {
		return nil
	}
	if stopped {
		n.stopped.Store(name, true)
	} else {
		n.stopped.Delete(name)
	}
	return n.writeFiles()
}

// SetHostname gives the capsule another name among its workloads.
func (n *Network) SetHostname(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hostname.Store(&name)
	return n.writeFiles()
}

// SetDomain names the domain that short names are searched in, after the
// workloads' own; "" is none.
func (n *Network) SetDomain(domain string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.domain = domain
	return n.writeFiles()
}

// writeFiles makes the files that workloads share say what is so.
func (n *Network) writeFiles() error {
	held, err := n.held()
	if err != nil {
		return err
	}
	names := map[string][]netip.Addr{}
	for name, a := range held {
		if _, stopped := n.stopped.Load(name); !stopped {
			names[name] = a.list(n.ipv6)
		}
	}
	own := *n.hostname.Load()
	if _, workload := held[own]; own != "" && !workload {
		names[own] = []netip.Addr{n.opts.Subnets.Gateway4()}
	}
	return errors.Join(
		writeInPlace(n.hostHosts(), hostsFile(names)),
		writeInPlace(n.hostResolvConf(), resolvConf(n.upstreams, n.domain)),
		writeInPlace(n.bridgeResolvConf(), resolvConf([]netip.Addr{n.opts.Subnets.Gateway4()}, Domain, n.domain)))
}

// resolve returns the addresses of a workload by name, or of the capsule by its
// own unless a workload has it; none when it is stopped.
func (n *Network) resolve(name string) ([]netip.Addr, bool) {
	a, ok, err := n.lookup(name)
	if err != nil {
		return nil, false
	}
	if !ok {
		own := *n.hostname.Load()
		return n.gateways(), own != "" && name == own
	}
	if _, stopped := n.stopped.Load(name); stopped {
		return nil, true
	}
	return a.list(n.ipv6), true
}

func (n *Network) gateways() []netip.Addr {
	return n.opts.Subnets.host(1).list(n.ipv6)
}

// nameOf returns the workload that has an address, or the capsule; inside says
// whether the address is one of the workload network at all.
func (n *Network) nameOf(addr netip.Addr) (name string, inside bool) {
	if !n.opts.Subnets.IPv4.Contains(addr) && !n.opts.Subnets.IPv6.Contains(addr) {
		return "", false
	}
	held, err := n.held()
	if err != nil {
		return "", true
	}
	if gw := n.opts.Subnets.host(1); addr == gw.IPv4 || addr == gw.IPv6 {
		own := *n.hostname.Load()
		if _, workload := held[own]; workload {
			return "", true
		}
		return own, true
	}
	for name, a := range held {
		if a.IPv4 == addr || a.IPv6 == addr {
			return name, true
		}
	}
	return "", true
}

// known is what a daemon has to know of the one before it to make the table
// whole: it lives as long as the table.
type known struct {
	Published []Published
	LAN       []netip.Prefix
}

func (n *Network) knownPath() string { return filepath.Join(n.opts.RunDir, "net", "table.json") }

// remember takes over what a daemon before this one knew, as far as there was one.
func (n *Network) remember() {
	var k known
	content, err := os.ReadFile(n.knownPath())
	if err == nil {
		err = json.Unmarshal(content, &k)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.opts.Log.Warn("network: read what was published", "error", err)
		return
	}
	n.published, n.lan = k.Published, k.LAN
}

func (n *Network) save() error {
	content, err := json.Marshal(known{n.published, n.lan})
	if err != nil {
		return err
	}
	return durable.WriteFile(n.knownPath(), content, 0o600)
}
