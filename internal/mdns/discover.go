package mdns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Bounds of a search.
const (
	foundMax    = 256 // capsules
	askedMax    = 32  // networks of the asker
	failuresMax = 100 // of one socket
	askAgain    = 250 * time.Millisecond
	namesakes   = time.Second // to wait for another capsule of the name that was found
	shownMax    = 8           // addresses of namesakes
)

// Found is a capsule that has answered.
type Found struct {
	Service
	// Addresses that it answered from come first, IPv4 before IPv6.
	Addresses []netip.Addr
}

// Host is where its API is reached, "192.168.1.20:50000".
func (f Found) Host() string {
	if hosts := f.Hosts(); len(hosts) > 0 {
		return hosts[0]
	}
	return ""
}

// Hosts are all places where its API may be reached, the best first.
func (f Found) Hosts() []string {
	var hosts []string
	for _, a := range f.Addresses {
		hosts = append(hosts, net.JoinHostPort(a.String(), strconv.Itoa(int(f.Port))))
	}
	return hosts
}

// Discover asks on all networks of this machine until ctx ends, and tells each
// capsule that answers, and again when more is known of it.
//
// It asks twice: as a plain DNS client, whom capsules answer alone, and from the
// port of multicast DNS where that can be shared, since a firewall that knows
// multicast DNS may let no other answer in.
func Discover(ctx context.Context, tell func(Found)) error {
	askers, err := openAskers(ctx)
	if err != nil {
		return err
	}
	heard := make(chan answer, queueMax)
	life, end := context.WithCancel(ctx)
	defer end()
	for _, a := range askers {
		defer a.close()
		go a.receive(life, heard)
	}
	found, held := finder{}, map[identity]bool{}
	release := func() {
		for key := range held {
			tell(found[key].Found)
		}
		clear(held)
	}
	again := time.NewTimer(0)
	defer again.Stop()
	for wait := askAgain; ; {
		select {
		case <-ctx.Done():
			release()
			return nil
		case <-again.C:
			release()
			for _, a := range askers {
				a.ask()
			}
			again.Reset(wait)
			wait *= 2
		case r := <-heard:
			switch f, news := found.learn(r); {
			case !news:
			case f.Addresses[0].IsLinkLocalUnicast():
				// A better address comes within moments, if there is one.
				held[f.identity()] = true
			default:
				delete(held, f.identity())
				tell(f)
			}
		}
	}
}

// Find gives the capsule of a name or an id, and waits for it until ctx ends. Several
// that have the name are an error that shows where they all are.
func Find(ctx context.Context, name string) (Found, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	all := map[identity]Found{}
	err := Discover(ctx, func(f Found) {
		if !strings.EqualFold(f.Name, name) && f.ID != name {
			return
		}
		if len(all) == 0 {
			time.AfterFunc(namesakes, cancel)
		}
		all[f.identity()] = f
	})
	if err != nil {
		return Found{}, err
	}
	return only(name, slices.Collect(maps.Values(all)))
}

// only is the one capsule that was found.
func only(name string, all []Found) (Found, error) {
	switch len(all) {
	case 0:
		return Found{}, fmt.Errorf("no capsule %q answers on this network: %w", name, errdefs.ErrNotFound)
	case 1:
		return all[0], nil
	}
	var hosts []string
	for _, f := range all {
		if host := f.Host(); host != "" && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	more := ""
	if len(hosts) > shownMax {
		hosts, more = hosts[:shownMax], ", and others"
	}
	return Found{}, fmt.Errorf("%d capsules answer to %q, at %s%s: name the right one by its address: %w",
		len(all), name, strings.Join(hosts, ", "), more, errdefs.ErrFailedPrecondition)
}

// identity tells capsules apart: whoever pretends to be another one without its
// CA's fingerprint is one more.
type identity struct{ id, name, fingerprint string }

func (f Found) identity() identity { return identity{f.ID, f.Name, f.Fingerprint} }

// finder gathers answers.
type finder map[identity]*sighting

type sighting struct {
	Found
	sources []netip.Addr // that it answered from
}

// learn takes an answer, and tells whether it is news.
func (f finder) learn(a answer) (Found, bool) {
	key := a.found.identity()
	have := f[key]
	if have == nil {
		if len(f) == foundMax {
			return Found{}, false
		}
		have = &sighting{Found: Found{Service: a.found.Service}}
		f[key] = have
	}
	before := have.Found
	have.Service = a.found.Service
	if from := a.from; (slices.Contains(a.found.Addresses, from) || from.IsLinkLocalUnicast() || len(a.found.Addresses) == 0) && !slices.Contains(have.sources, from) {
		have.sources = append(have.sources, from)
	}
	all := slices.Clone(have.sources)
	for _, l := range [][]netip.Addr{before.Addresses, a.found.Addresses} {
		for _, addr := range l {
			if !slices.Contains(all, addr) {
				all = append(all, addr)
			}
		}
	}
	if len(all) > addressesMax {
		all = all[:addressesMax]
	}
	slices.SortStableFunc(all, func(x, y netip.Addr) int { return have.rank(x) - have.rank(y) })
	have.Addresses = all
	return have.Found, have.Service != before.Service || !slices.Equal(all, before.Addresses)
}

// addressesMax of one capsule.
const addressesMax = 16

// rank is low for the address to use: one that it was heard from, easy to read,
// and the same on every machine.
func (s *sighting) rank(a netip.Addr) int {
	rank := 0
	if !slices.Contains(s.sources, a) {
		rank += 4
	}
	if a.IsLinkLocalUnicast() {
		rank += 2
	}
	if a.Is6() {
		rank++
	}
	return rank
}

// answer is one capsule in one packet.
type answer struct {
	found Found
	from  netip.Addr
}

// read finds the capsules that a packet tells all of.
func read(data []byte) []Found {
	var m dns.Msg
	if err := m.Unpack(data); err != nil || !m.Response || m.Rcode != dns.RcodeSuccess {
		return nil
	}
	all := slices.Concat(m.Answer, m.Extra)
	var list []Found
	for _, rr := range all {
		if srv, ok := rr.(*dns.SRV); ok && srv.Hdr.Ttl > 0 && srv.Port > 0 && isInstance(srv.Hdr.Name) && len(list) < foundMax {
			if f, ok := complete(srv, all); ok {
				list = append(list, f)
			}
		}
	}
	return list
}

func isInstance(name string) bool {
	cut := len(name) - len(serviceType)
	return cut > 1 && strings.EqualFold(name[cut:], serviceType)
}

// complete puts together what all the records say of one instance.
func complete(srv *dns.SRV, all []dns.RR) (Found, bool) {
	f, named := Found{}, false
	for _, rr := range all {
		switch rr := rr.(type) {
		case *dns.TXT:
			if s, err := parse(rr.Txt); err == nil && strings.EqualFold(rr.Hdr.Name, srv.Hdr.Name) {
				f.Service, named = s, true
			}
		case *dns.A:
			if a, ok := netip.AddrFromSlice(rr.A); ok && rr.Hdr.Ttl > 0 && strings.EqualFold(rr.Hdr.Name, srv.Target) {
				f.Addresses = append(f.Addresses, a.Unmap())
			}
		case *dns.AAAA:
			if a, ok := netip.AddrFromSlice(rr.AAAA); ok && rr.Hdr.Ttl > 0 && strings.EqualFold(rr.Hdr.Name, srv.Target) {
				f.Addresses = append(f.Addresses, a)
			}
		}
	}
	f.Port = srv.Port
	return f, named
}

// question asks for all capsules.
func question() ([]byte, error) {
	m := dns.Msg{Question: []dns.Question{{Name: serviceType, Qtype: dns.TypePTR, Qclass: dns.ClassINET}}}
	return m.Pack()
}

// asker is a socket that asks on some networks.
type asker struct {
	conn  net.PacketConn
	send  func(link *net.Interface, data []byte) error
	links []net.Interface
	data  []byte
}

func (a *asker) close() { a.conn.Close() }

// ask sends the question by each link. One that takes none is no network to
// find a capsule on.
func (a *asker) ask() {
	for i := range a.links {
		_ = a.send(&a.links[i], a.data)
	}
}

func (a *asker) receive(ctx context.Context, out chan<- answer) {
	buf := make([]byte, packetMax)
	for failed := 0; failed < failuresMax; {
		n, from, err := a.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		u, ok := from.(*net.UDPAddr)
		if err != nil || !ok {
			failed++ // some systems tell here that a former packet was refused
			continue
		}
		for _, f := range read(buf[:n]) {
			select {
			case out <- answer{f, u.AddrPort().Addr().Unmap()}:
			case <-ctx.Done():
				return
			}
		}
	}
}

// openAskers opens what can be opened: one socket is enough.
func openAskers(ctx context.Context) ([]*asker, error) {
	links, err := networks()
	if err != nil {
		return nil, err
	}
	data, err := question()
	if err != nil {
		return nil, err
	}
	var all []*asker
	var errs []error
	for _, at := range []string{"", group4.String()} {
		if a, err := openAsker4(ctx, at, links, data); err == nil {
			all = append(all, a)
		} else {
			errs = append(errs, err)
		}
	}
	for _, at := range []string{"", group6.String()} {
		if a, err := openAsker6(ctx, at, links, data); err == nil {
			all = append(all, a)
		} else {
			errs = append(errs, err)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("look for capsules: %w", errors.Join(errs...))
	}
	return all, nil
}

// networks are the links of this machine on which somebody may be found.
func networks() ([]net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list this machine's networks: %w", err)
	}
	all = slices.DeleteFunc(all, func(l net.Interface) bool {
		const need = net.FlagUp | net.FlagMulticast
		return l.Flags&need != need || l.Flags&net.FlagLoopback != 0
	})
	if len(all) == 0 {
		return nil, fmt.Errorf("this machine is on no network: %w", errdefs.ErrUnavailable)
	}
	return all[:min(len(all), askedMax)], nil
}

// openAsker4 opens a socket of its own, or with an address that of the group.
func openAsker4(ctx context.Context, at string, links []net.Interface, data []byte) (*asker, error) {
	listen := at
	if listen == "" {
		listen = "0.0.0.0:0"
	}
	c, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp4", listen)
	if err != nil {
		return nil, err
	}
	conn := ipv4.NewPacketConn(c)
	_ = conn.SetMulticastTTL(hops) // receivers may insist on it, and ours doesn't
	if at != "" {
		for i := range links {
			_ = conn.JoinGroup(&links[i], group4) // one link without IPv4 is none to hear on
		}
	}
	send := func(link *net.Interface, data []byte) error {
		if err := conn.SetMulticastInterface(link); err != nil {
			return err
		}
		_, err := conn.WriteTo(data, nil, group4)
		return err
	}
	return &asker{c, send, links, data}, nil
}

// openAsker6 is openAsker4 for IPv6.
func openAsker6(ctx context.Context, at string, links []net.Interface, data []byte) (*asker, error) {
	listen := at
	if listen == "" {
		listen = "[::]:0"
	}
	c, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp6", listen)
	if err != nil {
		return nil, err
	}
	conn := ipv6.NewPacketConn(c)
	_ = conn.SetMulticastHopLimit(hops) // as above
	if at != "" {
		for i := range links {
			_ = conn.JoinGroup(&links[i], group6)
		}
	}
	send := func(link *net.Interface, data []byte) error {
		if err := conn.SetMulticastInterface(link); err != nil {
			return err
		}
		_, err := conn.WriteTo(data, nil, group6)
		return err
	}
	return &asker{c, send, links, data}, nil
}
