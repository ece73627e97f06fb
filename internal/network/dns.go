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
	// upstreamTimeout for one server; three fit into queryTimeout.
	upstreamTimeout = 1500 * time.Millisecond
	// queryTimeout for all servers together; a resolver gives up after 5 s (glibc).
	queryTimeout = 4500 * time.Millisecond
	// queriesMax that are forwarded at a time; more are refused with SERVFAIL.
	queriesMax = 512
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
	upstreams []netip.AddrPort // the one that answered last is first
}

// newForwarder serves on port 53 of the addresses.
func newForwarder(on []netip.Addr, resolve func(string) ([]netip.Addr, bool), nameOf func(netip.Addr) (string, bool), log *slog.Logger) *forwarder {
	f := &forwarder{resolve: resolve, nameOf: nameOf, own: on, log: log, slots: make(chan struct{}, queriesMax)}
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
	f.mu.Lock()
	defer f.mu.Unlock()
	f.upstreams = list
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
		s.Listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
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
		_ = w.WriteMsg(answer)
		return
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		f.fail(w, q, dns.RcodeServerFailure)
		return
	}
	network := w.RemoteAddr().Network()
	if r := f.forward(network, q); r != nil {
		_ = w.WriteMsg(r)
		return
	}
	f.fail(w, q, dns.RcodeServerFailure)
}

// The write fails only when the client is gone.
func (f *forwarder) fail(w dns.ResponseWriter, q *dns.Msg, code int) {
	_ = w.WriteMsg(new(dns.Msg).SetRcode(q, code))
}

// answer is what we know ourselves, nil when it is the upstreams' to say.
func (f *forwarder) answer(q *dns.Msg) *dns.Msg {
	r := new(dns.Msg).SetReply(q)
	r.Authoritative, r.RecursionAvailable = true, true
	name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
	if a, ok := reverseAddr(name); ok {
		return f.answerReverse(r, a)
	}
	if name == Domain {
		return r
	}
	label, ours := strings.CutSuffix(name, "."+Domain)
	if strings.Contains(label, ".") && !ours {
		return nil
	}
	addrs, found := f.resolve(label)
	switch {
	case !found && ours:
		r.Rcode = dns.RcodeNameError
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
	return r
}

// answerReverse names the workload of an address of ours.
func (f *forwarder) answerReverse(r *dns.Msg, a netip.Addr) *dns.Msg {
	name, inside := f.nameOf(a)
	if !inside {
		return nil
	}
	if name == "" {
		r.Rcode = dns.RcodeNameError
		return r
	}
	if want := r.Question[0].Qtype; want == dns.TypePTR || want == dns.TypeANY {
		header := dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: ownTTL}
		r.Answer = []dns.RR{&dns.PTR{Hdr: header, Ptr: dns.Fqdn(name + "." + Domain)}}
	}
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

// forward asks one upstream after the other. SERVFAIL and REFUSED of one are
// another's chance; the last of them is the answer when nobody knows better.
func (f *forwarder) forward(network string, q *dns.Msg) *dns.Msg {
	ctx, cancel := context.WithTimeout(f.ctx, queryTimeout)
	defer cancel()
	f.mu.Lock()
	servers := f.upstreams
	f.mu.Unlock()
	var last *dns.Msg
	for i, server := range servers {
		client := &dns.Client{Net: network, Timeout: upstreamTimeout, UDPSize: dns.MaxMsgSize - 1}
		r, _, err := client.ExchangeContext(ctx, q, server.String())
		if err != nil || r == nil {
			continue
		}
		if r.Rcode == dns.RcodeServerFailure || r.Rcode == dns.RcodeRefused {
			last = r
			continue
		}
		if i > 0 {
			f.prefer(server)
		}
		return r
	}
	return last
}

// prefer asks the server first from now on, if it still is one of ours.
func (f *forwarder) prefer(server netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.Index(f.upstreams, server)
	if i <= 0 {
		return
	}
	list := slices.Concat([]netip.AddrPort{server}, f.upstreams[:i], f.upstreams[i+1:])
	f.upstreams = list
}
