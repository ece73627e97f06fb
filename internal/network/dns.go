package network

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// upstreamTimeout of one question to one server.
	upstreamTimeout = 2 * time.Second
	// queryTimeout for all servers together; a resolver gives up after 5 s (glibc).
	queryTimeout = 4500 * time.Millisecond
	// nextAfter is how long a server may be silent before the next is asked, too.
	nextAfter = 250 * time.Millisecond
	// missesMax in a row, and a server comes after the one that answered instead,
	// for preferFor: the first one may know names that others don't.
	missesMax = 3
	preferFor = time.Minute
	// rounds is how often each server is asked: a packet may be lost.
	rounds = 2
	// upstreamsMax are used; the first ones.
	upstreamsMax = 8
	// queriesMax that are forwarded at a time; more are refused with SERVFAIL.
	queriesMax = 512
	// clientQueriesMax of these are those of one workload.
	clientQueriesMax = 128
	// connectionsMax by TCP of one workload at a time; more are closed.
	connectionsMax = 32
	// ednsSize is the largest answer of ours by UDP, bytes (dnsflagday.net/2020).
	ednsSize = 1232
	// tcpIdle is how long a client may keep a silent connection.
	tcpIdle = 10 * time.Second
	// listenRetry when the daemon before this one still holds the port.
	listenRetry = 250 * time.Millisecond
	// ownTTL of workload addresses, seconds.
	ownTTL = 5
)

// forwarder answers for workload names and passes all else to the upstreams.
type forwarder struct {
	resolve func(name string) ([]netip.Addr, bool)
	nameOf  func(netip.Addr) (string, bool)
	own     []netip.Addr // never an upstream
	log     *slog.Logger
	slots   chan struct{}
	ctx     context.Context
	cancel  context.CancelFunc
	done    sync.WaitGroup

	mu        sync.Mutex
	told      []netip.AddrPort // by setUpstreams
	upstreams []netip.AddrPort // the same, first the one that answers
	misses    int              // of the first one, in a row
	preferred time.Time        // when another became the first one
	clients   map[netip.Addr]int
}

// newForwarder serves on port 53 of the addresses.
func newForwarder(on []netip.Addr, resolve func(string) ([]netip.Addr, bool), nameOf func(netip.Addr) (string, bool), log *slog.Logger) *forwarder {
	f := &forwarder{resolve: resolve, nameOf: nameOf, own: on, log: log, slots: make(chan struct{}, queriesMax), clients: map[netip.Addr]int{}}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	for _, a := range on {
		for _, network := range []string{"udp", "tcp"} {
			at := netip.AddrPortFrom(a, dnsPort)
			server, err := f.open(network, at)
			f.done.Go(func() { f.serve(network, at, server, err) })
		}
	}
	return f
}

func (f *forwarder) close() error {
	f.cancel()
	f.done.Wait()
	return nil
}

func (f *forwarder) setUpstreams(servers []netip.Addr) {
	var list []netip.AddrPort
	for _, s := range servers {
		if s.IsValid() && !slices.Contains(f.own, s.Unmap()) {
			list = append(list, netip.AddrPortFrom(s.Unmap(), dnsPort))
		}
	}
	list = list[:min(len(list), upstreamsMax)]
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(list, f.told) {
		f.told, f.upstreams, f.misses = list, list, 0
	}
}

// serve answers until close, and listens again whenever that ends early.
func (f *forwarder) serve(network string, at netip.AddrPort, s *dns.Server, err error) {
	logged := false
	for {
		if err == nil {
			err = f.run(s)
		}
		if f.ctx.Err() != nil {
			return
		}
		if !logged {
			f.log.Warn("dns: serve workloads", "address", at, "network", network, "error", err)
			logged = true
		}
		select {
		case <-f.ctx.Done():
			return
		case <-time.After(listenRetry):
		}
		s, err = f.open(network, at)
	}
}

// open takes the port.
func (f *forwarder) open(network string, at netip.AddrPort) (*dns.Server, error) {
	s := &dns.Server{Net: network, Handler: f, IdleTimeout: func() time.Duration { return tcpIdle }}
	var err error
	if network == "udp" {
		s.PacketConn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	} else {
		var l *net.TCPListener
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		s.Listener = &listener{TCPListener: l, open: map[netip.Addr]int{}}
	}
	return s, err
}

// run answers until close.
func (f *forwarder) run(s *dns.Server) error {
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	ended := make(chan error, 1)
	go func() { ended <- s.ActivateAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-f.ctx.Done():
	}
	<-started
	return errors.Join(s.Shutdown(), <-ended)
}

// ServeDNS answers one query.
func (f *forwarder) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery || q.Question[0].Qclass != dns.ClassINET {
		f.fail(w, q, dns.RcodeNotImplemented)
		return
	}
	if answer := f.answer(q); answer != nil {
		reply(w, q, answer)
		return
	}
	if !f.enter(w.RemoteAddr()) {
		f.fail(w, q, dns.RcodeServerFailure)
		return
	}
	defer f.leave(w.RemoteAddr())
	if r := f.forward(w.RemoteAddr().Network(), q); r != nil {
		reply(w, q, r)
		return
	}
	f.fail(w, q, dns.RcodeServerFailure)
}

// enter takes a place among those who wait for an upstream, if one is left to
// the client: nobody's questions keep others waiting.
func (f *forwarder) enter(from net.Addr) bool {
	client := hostOf(from)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.clients[client] >= clientQueriesMax {
		return false
	}
	select {
	case f.slots <- struct{}{}:
		f.clients[client]++
		return true
	default:
		return false
	}
}

func (f *forwarder) leave(from net.Addr) {
	client := hostOf(from)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.clients[client]--; f.clients[client] == 0 {
		delete(f.clients, client)
	}
	<-f.slots
}

func hostOf(a net.Addr) netip.Addr {
	p, _ := netip.ParseAddrPort(a.String())
	return p.Addr().Unmap()
}

func (f *forwarder) fail(w dns.ResponseWriter, q *dns.Msg, code int) {
	r := new(dns.Msg).SetRcode(q, code)
	withEDNS(r, q)
	reply(w, q, r)
}

// reply answers as large as the client can take. The write fails only when it is
// gone.
func reply(w dns.ResponseWriter, q, r *dns.Msg) {
	if w.RemoteAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
		r.Truncate(size)
	}
	_ = w.WriteMsg(r)
}

// withEDNS speaks EDNS to who does (RFC 6891, 6.1.1).
func withEDNS(r, q *dns.Msg) {
	if q.IsEdns0() != nil && r.IsEdns0() == nil {
		r.SetEdns0(ednsSize, false)
	}
}

// answer is what we know ourselves, nil when it is the upstreams' to say. What
// is below our domain never is.
func (f *forwarder) answer(q *dns.Msg) *dns.Msg {
	r := new(dns.Msg).SetReply(q)
	r.Authoritative, r.RecursionAvailable = true, true
	withEDNS(r, q)
	name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
	if a, ok := reverseAddr(name); ok {
		return f.answerReverse(r, a)
	}
	if name == Domain {
		soa := authority(Domain)
		if want := q.Question[0].Qtype; want == dns.TypeSOA || want == dns.TypeANY {
			r.Answer = []dns.RR{soa}
		} else {
			r.Ns = []dns.RR{soa}
		}
		return r
	}
	zone := name
	label, ours := strings.CutSuffix(name, "."+Domain)
	if ours {
		zone = Domain
	} else if strings.Contains(label, ".") {
		return nil
	}
	addrs, found := f.resolve(label)
	switch {
	case !found && ours:
		r.Rcode, r.Ns = dns.RcodeNameError, []dns.RR{authority(zone)}
		return r
	case !found:
		return nil
	}
	header := dns.RR_Header{Name: q.Question[0].Name, Class: dns.ClassINET, Ttl: ownTTL}
	for _, a := range addrs {
		switch want := q.Question[0].Qtype; {
		case a.Is4() && (want == dns.TypeA || want == dns.TypeANY):
			header.Rrtype = dns.TypeA
			r.Answer = append(r.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
		case a.Is6() && (want == dns.TypeAAAA || want == dns.TypeANY):
			header.Rrtype = dns.TypeAAAA
			r.Answer = append(r.Answer, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
		}
	}
	if len(r.Answer) == 0 { // the name exists, and this of it doesn't
		r.Ns = []dns.RR{authority(zone)}
	}
	return r
}

// authority says that an answer that there is none is final, and for how long
// (RFC 2308).
func authority(zone string) *dns.SOA {
	return &dns.SOA{Hdr: dns.RR_Header{Name: dns.Fqdn(zone), Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ownTTL},
		Ns: dns.Fqdn(Domain), Mbox: "hostmaster." + dns.Fqdn(Domain), Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ownTTL}
}

// answerReverse names the workload of an address of ours.
func (f *forwarder) answerReverse(r *dns.Msg, a netip.Addr) *dns.Msg {
	name, inside := f.nameOf(a)
	if !inside {
		return nil
	}
	if want := r.Question[0].Qtype; name != "" && (want == dns.TypePTR || want == dns.TypeANY) {
		header := dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: ownTTL}
		r.Answer = []dns.RR{&dns.PTR{Hdr: header, Ptr: dns.Fqdn(name + "." + Domain)}}
		return r
	}
	if name == "" {
		r.Rcode = dns.RcodeNameError
	}
	// The last byte of IPv4, the last four of IPv6 are the workload's at least.
	parent := strings.SplitN(r.Question[0].Name, ".", 2)
	if a.Is6() {
		parent = strings.SplitN(r.Question[0].Name, ".", 5)
	}
	r.Ns = []dns.RR{authority(parent[len(parent)-1])}
	return r
}

// reverseAddr reads a whole name under in-addr.arpa or ip6.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		labels := strings.Split(rest, ".")
		slices.Reverse(labels)
		a, err := netip.ParseAddr(strings.Join(labels, "."))
		return a, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	labels := strings.Split(rest, ".")
	if !ok || len(labels) != 32 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i, l := range labels {
		v, err := strconv.ParseUint(l, 16, 4)
		if err != nil || len(l) != 1 {
			return netip.Addr{}, false
		}
		at := 31 - i
		b[at/2] |= byte(v) << (4 * (1 - at%2))
	}
	return netip.AddrFrom16(b), true
}

// forward asks the upstreams until one knows: the next when one is silent for a
// moment or refuses. SERVFAIL and REFUSED are the answer when nobody knows better.
func (f *forwarder) forward(network string, q *dns.Msg) *dns.Msg {
	ctx, cancel := context.WithTimeout(f.ctx, queryTimeout)
	defer cancel()
	servers := f.servers()
	type answer struct {
		from netip.AddrPort
		msg  *dns.Msg
	}
	asked, waiting := 0, 0
	answers := make(chan answer, rounds*upstreamsMax)
	ask := func() {
		server := servers[asked%len(servers)]
		asked++
		waiting++
		go func() { answers <- answer{server, exchange(ctx, network, q, server)} }()
	}
	var last *dns.Msg
	silence := time.NewTicker(nextAfter)
	defer silence.Stop()
	for more := len(servers) > 0; more || waiting > 0; {
		if more && waiting == 0 {
			ask()
		}
		select {
		case a := <-answers:
			waiting--
			if a.msg != nil && a.msg.Rcode != dns.RcodeServerFailure && a.msg.Rcode != dns.RcodeRefused {
				f.answered(a.from)
				return a.msg
			}
			if a.msg != nil {
				last = a.msg
			}
			if asked < len(servers) {
				ask()
			}
		case <-silence.C:
			if asked < len(servers) {
				ask()
			}
		}
		// Who answered that he can't need not be asked again.
		more = ctx.Err() == nil && asked < rounds*len(servers) && (asked < len(servers) || last == nil)
	}
	return last
}

// exchange asks one server, by a number of our own: a workload knows the other.
func exchange(ctx context.Context, network string, q *dns.Msg, server netip.AddrPort) *dns.Msg {
	m := q.Copy()
	m.Id = dns.Id()
	client := &dns.Client{Net: network, Timeout: upstreamTimeout, UDPSize: dns.MaxMsgSize - 1}
	r, _, err := client.ExchangeContext(ctx, m, server.String())
	if err != nil || r == nil || len(r.Question) != 1 || r.Question[0].Qtype != q.Question[0].Qtype ||
		!strings.EqualFold(r.Question[0].Name, q.Question[0].Name) {
		return nil
	}
	r.Id, r.Question = q.Id, q.Question
	return r
}

// servers are the upstreams in the order to ask them.
func (f *forwarder) servers() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.preferred) > preferFor {
		f.upstreams = f.told
	}
	return f.upstreams
}

// answered says which server was the first to know.
func (f *forwarder) answered(server netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.Index(f.upstreams, server)
	if i <= 0 {
		if i == 0 {
			f.misses = 0
		}
		return
	}
	if f.misses++; f.misses < missesMax {
		return
	}
	f.upstreams = slices.Concat([]netip.AddrPort{server}, f.upstreams[:i], f.upstreams[i+1:])
	f.misses, f.preferred = 0, time.Now()
}

// listener bounds the connections that one client has open.
type listener struct {
	*net.TCPListener
	mu   sync.Mutex
	open map[netip.Addr]int
}

// Accept takes the next connection of a client that has not too many.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.TCPListener.Accept()
		if err != nil {
			return nil, err
		}
		client := hostOf(c.RemoteAddr())
		l.mu.Lock()
		full := l.open[client] >= connectionsMax
		if !full {
			l.open[client]++
		}
		l.mu.Unlock()
		if !full {
			return &connection{Conn: c, closed: sync.OnceFunc(func() { l.closed(client) })}, nil
		}
		_ = c.Close() // whom nothing was said to
	}
}

func (l *listener) closed(client netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[client]--; l.open[client] == 0 {
		delete(l.open, client)
	}
}

type connection struct {
	net.Conn
	closed func()
}

// Close gives the client's place back.
func (c *connection) Close() error {
	c.closed()
	return c.Conn.Close()
}
