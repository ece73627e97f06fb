package uplink

import (
	"net/netip"
	"time"
)

// Lease is what a DHCP server granted.
type Lease struct {
	Address  netip.Prefix
	Router   netip.Addr // zero: none
	Server   netip.Addr // identifier of the server
	DNS      []netip.Addr
	NTP      []netip.Addr
	Domain   string
	MTU      int // 0: as it is
	Acquired time.Time
	// Since Acquired; RFC 2131, 4.4.5.
	Renew, Rebind, Expiry time.Duration
}

// ask is a kind of request to a DHCP server.
type ask int

// What a client can ask, by what it knows.
const (
	discover ask = iota + 1 // any server, any address
	reboot                  // any server, the address that we had
	renew                   // the server of the lease
	rebind                  // any server, the address that we use
)

func (a ask) String() string {
	return [...]string{discover: "discover", reboot: "reboot", renew: "renew", rebind: "rebind"}[a]
}

const (
	// retryMin and retryMax bound the time between requests without an
	// address. The longest gap and the exchange itself stay well below the 15 s
	// in which a machine should have its address once it can.
	retryMin = time.Second
	retryMax = 8 * time.Second
	// renewRetryMin is the shortest time between requests with an address; RFC
	// 2131, 4.4.5 has 60 s, which is too long for leases of minutes.
	renewRetryMin = 10 * time.Second
)

// machine is the state of the client on one link:
//
//	(no lease) ──discover──► bound ──T1──► renewing ──T2──► rebinding
//	    ▲  ▲                  │ ▲  ◄──ack──────┴──────ack──────┘ │
//	    │  └──nak─────────────┼─┼────────────────────────────────┤
//	    │                     ▼ │ ack                            │
//	    └──────────expiry── rebooting (link came up, daemon new) │
//	    ▲                                                        │
//	    └────────────────────────────────────────────────expiry──┘
//
// It does nothing by itself and reads no clock.
type machine struct {
	lease   *Lease
	reboot  bool // the lease is to be confirmed: we may be on another network
	fails   int  // requests without an answer since the last change
	retryAt time.Time
}

// next says what to ask and when. Without an ask, the lease has run out at that
// time.
func (m *machine) next() (ask, time.Time) {
	if m.lease == nil {
		return discover, m.retryAt
	}
	expiry := m.lease.Acquired.Add(m.lease.Expiry)
	what, at := renew, later(m.lease.Acquired.Add(m.lease.Renew), m.retryAt)
	switch {
	case m.reboot && m.fails == 0:
		what, at = reboot, m.retryAt
	case m.reboot:
		// On another network nobody may know the lease, and keep silent.
		what, at = discover, m.retryAt
	case !at.Before(m.lease.Acquired.Add(m.lease.Rebind)):
		what = rebind
	}
	if !at.Before(expiry) {
		return 0, expiry
	}
	return what, at
}

// patience is how long an answer is waited for before the same request is sent
// again, doubling, and in all.
func (m *machine) patience(what ask) (again, total time.Duration) {
	switch {
	case what == renew || what == rebind:
		return 2 * time.Second, renewRetryMin
	case what == reboot:
		return retryMin, 3 * time.Second
	case m.fails == 0:
		// Sent at 0, 1, 3 and 7 s.
		return retryMin, 15 * time.Second
	}
	return retryMax, retryMax
}

// acked takes a new or renewed lease.
func (m *machine) acked(l *Lease) { *m = machine{lease: l} }

// refused forgets the lease: a server said that it is not ours. The next
// discover comes after a moment, since some servers refuse in a circle.
func (m *machine) refused(now time.Time) {
	fails := m.fails
	if m.lease != nil {
		fails = 0
	}
	*m = machine{fails: fails + 1, retryAt: now.Add(backoff(fails))}
}

// unanswered plans what follows a request that began at the time.
func (m *machine) unanswered(began, now time.Time) {
	m.fails++
	if m.lease == nil || m.reboot {
		// The wait for the answer counts.
		m.retryAt = later(now, began.Add(backoff(m.fails-1)))
		if m.lease != nil && m.fails > rebootTries {
			// The lease holds even when nobody confirms it.
			m.reboot = false
		}
		return
	}
	end := m.lease.Acquired.Add(m.lease.Rebind)
	if !now.Before(end) {
		end = m.lease.Acquired.Add(m.lease.Expiry)
	}
	m.retryAt = now.Add(max(end.Sub(now)/2, renewRetryMin))
	if m.retryAt.After(end) {
		m.retryAt = end
	}
}

// rebootTries before a lease is taken for good until its T1.
const rebootTries = 5

// linkUp asks at once: what we know may be of another network.
func (m *machine) linkUp(now time.Time) {
	m.fails, m.retryAt, m.reboot = 0, now, m.lease != nil
}

// expired forgets the lease.
func (m *machine) expired(now time.Time) { *m = machine{retryAt: now} }

// backoff doubles from retryMin to retryMax.
func backoff(n int) time.Duration {
	return min(retryMin<<min(n, 10), retryMax)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
