package mdns

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/time/rate"
)

// Times of what is sent to the group. The spread keeps capsules that hear one
// question from answering at once; the pause bounds what a flood of questions makes.
const (
	spreadMin    = 20 * time.Millisecond
	spreadMax    = 120 * time.Millisecond
	pause        = time.Second
	announceNext = time.Second // what is new is said twice
)

// Bounds of the rest.
const (
	linksMax      = 16
	queueMax      = 64 // packets that wait
	unicastEvery  = 10 * time.Millisecond
	unicastBurst  = 100 // answers to single askers at once
	rest          = time.Hour
	unreachedNote = "the capsule is not found on a link"
)

// Responder answers who looks for capsules. It says nothing until it knows what,
// and where.
type Responder struct {
	log     *slog.Logger
	changed chan struct{}

	mu      sync.Mutex
	service Service
	links   []Link
}

// NewResponder makes one that Run brings to life.
func NewResponder(log *slog.Logger) *Responder {
	return &Responder{log: log, changed: make(chan struct{}, 1)}
}

// Say changes what is said, at any time.
func (r *Responder) Say(s Service) {
	r.mu.Lock()
	r.service = s
	r.mu.Unlock()
	r.wake()
}

// On changes the links that it is said on, at any time.
func (r *Responder) On(links []Link) {
	r.mu.Lock()
	r.links = slices.Clone(links[:min(len(links), linksMax)])
	r.mu.Unlock()
	r.wake()
}

func (r *Responder) wake() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (r *Responder) now() (Service, []Link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.service, r.links
}

// Run answers until ctx ends, and then says goodbye. It fails when no socket can
// be had, or one breaks; it may be run again.
func (r *Responder) Run(ctx context.Context) error {
	socks, err := openSockets(ctx)
	if err != nil {
		return err
	}
	return r.serve(ctx, socks)
}

func (r *Responder) serve(ctx context.Context, socks *sockets) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	packets, broken := make(chan packet, queueMax), make(chan error, 1)
	done := make(chan struct{})
	go func() { defer close(done); broken <- socks.receive(life, packets) }()
	s := &speaker{socks: socks, log: r.log, links: map[int]*spoken{}, limit: rate.NewLimiter(rate.Every(unicastEvery), unicastBurst)}
	err := s.run(ctx, r, packets, broken)
	end()
	socks.close()
	<-done
	return err
}

// speaker is owned by the goroutine of Run.
type speaker struct {
	socks *sockets
	log   *slog.Logger
	links map[int]*spoken // by index
	limit *rate.Limiter   // of answers to single askers
	// refused is what can't be said, and was complained of.
	refused Service
}

// spoken is a link with what is said on it.
type spoken struct {
	Link
	records []dns.RR
	pending []dns.RR  // answers to the group that wait
	due     time.Time // when they are sent
	last    time.Time // the group was told anything
	again   time.Time // when all is said once more
	failed  bool      // the last send
}

func (s *speaker) run(ctx context.Context, r *Responder, packets <-chan packet, broken <-chan error) error {
	s.follow(r.now())
	timer := time.NewTimer(rest)
	defer timer.Stop()
	for {
		timer.Reset(s.wait(time.Now()))
		select {
		case <-ctx.Done():
			s.goodbye()
			return nil
		case err := <-broken:
			return err
		case <-r.changed:
			s.follow(r.now())
		case p := <-packets:
			s.heard(p, time.Now())
		case <-timer.C:
			s.speak(time.Now())
		}
	}
}

// follow makes the links be as given, and announces what is new on each.
func (s *speaker) follow(service Service, links []Link) {
	if service != (Service{}) {
		if err := service.check(); err != nil {
			if service != s.refused {
				s.log.Error("the capsule can't be found", "error", err)
			}
			s.refused, service = service, Service{}
		}
	}
	there := map[int]bool{}
	for _, l := range links {
		there[l.Index] = true
		have := s.links[l.Index]
		if have == nil {
			have = &spoken{Link: l}
			s.links[l.Index] = have
			if err := s.socks.join(l); err != nil {
				s.log.Debug("join the group of mDNS", "link", l.Name, "error", err) // IPv6 may be off
			}
		}
		have.Link = l
		var now []dns.RR
		if service != (Service{}) {
			now = records(service, l)
		}
		s.announce(have, now)
	}
	for index, l := range s.links {
		if !there[index] {
			s.announce(l, nil)
			s.socks.leave(l.Link)
			delete(s.links, index)
		}
	}
}

// announce says what is new on a link, and takes back what is no more.
func (s *speaker) announce(l *spoken, now []dns.RR) {
	if reflect.DeepEqual(l.records, now) {
		return
	}
	gone := goodbyes(l.records, now)
	l.records, l.pending, l.due = now, nil, time.Time{}
	l.again = time.Time{}
	if len(now) > 0 {
		l.again = time.Now().Add(announceNext)
	}
	s.send(l, slices.Concat(now, gone), nil)
}

func (s *speaker) goodbye() {
	for _, l := range s.links {
		s.send(l, goodbyes(l.records, nil), nil)
	}
}

// wait is how long there is nothing to say.
func (s *speaker) wait(now time.Time) time.Duration {
	next := now.Add(rest)
	for _, l := range s.links {
		for _, t := range []time.Time{l.due, l.again} {
			if !t.IsZero() && t.Before(next) {
				next = t
			}
		}
	}
	return max(0, next.Sub(now))
}

// speak says what is due.
func (s *speaker) speak(now time.Time) {
	for _, l := range s.links {
		if !l.again.IsZero() && !l.again.After(now) {
			l.again, l.due, l.pending = time.Time{}, time.Time{}, nil
			s.send(l, l.records, nil)
		}
		if !l.due.IsZero() && !l.due.After(now) {
			list := l.pending
			l.due, l.pending = time.Time{}, nil
			s.send(l, list, besides(l.records, list))
		}
	}
}

func (s *speaker) send(l *spoken, list, extra []dns.RR) {
	if len(list) == 0 {
		return
	}
	data, err := response(list, extra).Pack()
	if err == nil {
		err = s.socks.toGroup(l.Link, data)
	}
	l.last = time.Now()
	if err != nil && !l.failed {
		s.log.Warn(unreachedNote, "link", l.Name, "error", err)
	}
	l.failed = err != nil
}

// heard takes a packet, and answers if it is a question that is for us.
func (s *speaker) heard(p packet, now time.Time) {
	l := s.links[p.link]
	if l == nil || !l.near(p.from.Addr()) {
		return
	}
	query, ok := readQuery(p.data)
	if !ok {
		return
	}
	list := answers(l.records, query)
	switch {
	case len(list) == 0:
	case p.from.Port() != port:
		s.tell(l, p.from, legacy(query, list, besides(l.records, list)))
	case alone(query):
		s.tell(l, p.from, response(list, besides(l.records, list)))
	default:
		l.ask(list, now)
	}
}

// alone tells whether the asker takes the answer for itself.
func alone(query *dns.Msg) bool {
	return !slices.ContainsFunc(query.Question, func(q dns.Question) bool { return q.Qclass&unicast == 0 })
}

func (s *speaker) tell(l *spoken, to netip.AddrPort, m *dns.Msg) {
	if !s.limit.Allow() {
		return
	}
	data, err := m.Pack()
	if err == nil {
		err = s.socks.toOne(l.Link, to, data)
	}
	if err != nil {
		s.log.Debug("answer who looks for capsules", "link", l.Name, "error", err)
	}
}

// ask has records sent to the group soon, together with what else is asked for
// meanwhile.
func (l *spoken) ask(list []dns.RR, now time.Time) {
	for _, rr := range list {
		if !slices.Contains(l.pending, rr) {
			l.pending = append(l.pending, rr)
		}
	}
	if !l.due.IsZero() {
		return
	}
	l.due = now.Add(spreadMin + rand.N(spreadMax-spreadMin)) //nolint:gosec // spread, no secret
	if next := l.last.Add(pause); l.due.Before(next) {
		l.due = next
	}
}

// near tells whether an address is of the link's own network, RFC 6762 section 11:
// no answer leaves it, whoever pretends to ask.
func (l *spoken) near(a netip.Addr) bool {
	a = a.WithZone("")
	return a.IsLinkLocalUnicast() || slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Contains(a) })
}
