package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/contexts"
)

// Bounds of confirming a changed network.
const (
	confirmEvery = time.Second      // between tries at one way
	confirmMax   = 15 * time.Second // of a try: a connection, which may have to be found, and two calls
	lateAfter    = 5 * time.Second  // from when on it is told that the capsule is not reached
	backMax      = 30 * time.Second // after its time, for the capsule to be back
)

// confirmation is of a changed network that a capsule tries: it goes back by itself
// unless it is confirmed over the new way.
type confirmation struct {
	app        *app
	generation uint64
	until      time.Time // it goes back
	old        string    // where the capsule was
	ways       []string  // hosts to confirm at; none is wherever the capsule is found
	line       statusLine
}

// confirmNetwork confirms what was applied where that is a change of the network. at
// is the host to do so at; "" is chosen.
func (a *app) confirmNetwork(ctx context.Context, at string, results []*capsulev1.ApplyResult) error {
	for _, r := range results {
		m, s := r.GetObject().GetMeta(), r.GetObject().GetCapsule().GetStatus()
		if s.GetTrial() == nil || s.GetTrial().GetGeneration() != m.GetGeneration() {
			continue
		}
		c, err := a.dial()
		if err != nil {
			return err
		}
		n := &confirmation{
			app: a, generation: m.GetGeneration(), until: until(r), line: statusLine{ui: a.ui}, old: c.seek.at(),
			ways: ways(c.seek.at(), at, s.GetTrial().GetBefore(), r.GetObject().GetCapsule().GetSpec().GetNetwork()),
		}
		return n.run(ctx)
	}
	return nil
}

// until is when what was applied goes back, by our clock: the capsule's may be another
// one. It tells of a trial that began before.
func until(r *capsulev1.ApplyResult) time.Time {
	end := time.Now().Add(manifest.TrialMax)
	told := r.GetObject().GetCapsule().GetStatus().GetTrial().GetUntil().AsTime()
	if r.GetOutcome() == capsulev1.Outcome_OUTCOME_UNCHANGED && told.After(time.Now()) && told.Before(end) {
		return told
	}
	return end
}

// checkConfirmAt refuses what is no host, or would be one for several capsules.
func (o ApplyOptions) checkConfirmAt(a *app) error {
	if o.ConfirmAt == "" {
		return nil
	}
	if a.many() {
		return &failure{exitUsage, errors.New("--confirm-at is the address of one capsule, and several are meant"), "apply it to one capsule at a time"}
	}
	if _, ok := contexts.Address(o.ConfirmAt); !ok {
		return &failure{exitUsage, fmt.Errorf("--confirm-at %q is neither an address nor HOST:PORT", o.ConfirmAt), ""}
	}
	return nil
}

// ways are where a changed network has to be confirmed: at an address that is new,
// which the old way would say nothing of. Where none is, at the capsule itself,
// wherever that is found.
func ways(host, at string, before, after *capsulev1.CapsuleNetwork) []string {
	if at != "" {
		host, _ := contexts.Address(at) // that was checked
		return []string{host}
	}
	_, port, err := net.SplitHostPort(host)
	if err != nil || loopback(host) { // its port is passed on, to where we can't know
		return []string{host}
	}
	var old, list []string
	for _, l := range before.GetLinks() {
		old = append(old, l.GetAddresses()...)
	}
	for _, l := range after.GetLinks() {
		for _, a := range l.GetAddresses() {
			if p, err := netip.ParsePrefix(a); err == nil && !slices.Contains(old, a) {
				list = append(list, net.JoinHostPort(p.Addr().String(), port))
			}
		}
	}
	return list
}

// where is what is said of the ways: " at 192.168.1.10:50000".
func (n *confirmation) where() string {
	if len(n.ways) == 0 {
		return ""
	}
	return " at " + strings.Join(n.ways, " or ")
}

// name is the capsule, without where it was.
func (n *confirmation) name() string {
	if name := n.app.client.context.Name; name != "" {
		return fmt.Sprintf("capsule %q", name)
	}
	return "the capsule"
}

// back is when the network is as before.
func (n *confirmation) back() string { return n.until.Format("15:04:05") }

func (n *confirmation) run(ctx context.Context) error {
	defer n.line.end()
	n.line.set(fmt.Sprintf("%s tries its new network, and goes back at %s unless that is confirmed%s", n.name(), n.back(), n.where()))
	host, err := n.race(ctx)
	n.line.end()
	switch {
	case err != nil:
		return err
	case host != "":
		return n.arrived(host)
	case ctx.Err() != nil:
		return &failure{exitFailed, fmt.Errorf("interrupted: the new network is not confirmed, and goes back at %s by itself", n.back()), ""}
	}
	return n.gone(ctx)
}

// settled tells that a change was taken back, or will never be confirmed by us.
func settled(err error) bool {
	switch grpcstatus.Code(err) {
	case codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return true
	}
	return false
}

// try is one way to confirm a change, or to learn what became of it: the host that it
// was confirmed at, or "".
type try func(ctx context.Context) (host string, err error)

// race goes all ways at once, each again and again until the time is over, and looks
// by the old one what became of the change. The first counts that confirms it, or
// knows that it never will be: its error.
func (n *confirmation) race(ctx context.Context) (string, error) {
	ctx, cancel := context.WithDeadline(ctx, n.until)
	tries := []try{n.look}
	for _, way := range n.ways {
		tries = append(tries, func(ctx context.Context) (string, error) { return n.confirm(ctx, way) })
	}
	if len(n.ways) == 0 {
		tries = append(tries, func(ctx context.Context) (string, error) { return n.confirm(ctx, "") })
	}
	type answer struct {
		host string
		err  error
	}
	answers := make(chan answer, len(tries))
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel() // the others are of no use
	for _, t := range tries {
		all.Go(func() {
			if host, err := t.again(ctx); host != "" || err != nil {
				answers <- answer{host, err}
			}
		})
	}
	late := time.NewTimer(lateAfter)
	defer late.Stop()
	for {
		select {
		case a := <-answers:
			return a.host, a.err
		case <-late.C:
			n.line.set(fmt.Sprintf("%s is not reached%s yet; its network goes back at %s", n.name(), n.where(), n.back()))
		case <-ctx.Done():
			return "", nil
		}
	}
}

// again tries until there is an end, of ctx or of the change.
func (t try) again(ctx context.Context) (string, error) {
	for ctx.Err() == nil {
		once, cancel := context.WithTimeout(ctx, confirmMax)
		host, err := t(once)
		cancel()
		if host != "" || settled(err) {
			return host, err
		}
		pause(ctx, confirmEvery)
	}
	return "", nil
}

// connect makes a connection of its own to a host, or with "" to where the capsule is
// found. The context's CA tells that it is the capsule.
func (n *confirmation) connect(host string) (*grpc.ClientConn, *seeker, error) {
	c := n.app.client.context
	seek, err := newSeeker(c)
	if err != nil {
		return nil, nil, err
	}
	if host != "" {
		seek.host, seek.ca = host, "" // there and nowhere else
	}
	conn, err := c.Dial(seek.options()...)
	return conn, seek, err
}

// confirm confirms over a new connection: to a host, or to where the capsule is found.
func (n *confirmation) confirm(ctx context.Context, host string) (string, error) {
	conn, seek, err := n.connect(host)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	service := capsulev1.NewCapsuleServiceClient(conn)
	request := &capsulev1.ConfirmNetworkRequest{Generation: n.generation}
	for range 2 {
		answer, err := service.ConfirmNetwork(ctx, request)
		if err != nil {
			return "", err
		}
		if answer.GetConfirmed() {
			return seek.at(), nil
		}
		request.Proof = answer.GetProof()
	}
	return "", nil
}

// look finds out where the capsule was what became of the change, and confirms nothing:
// the error of the capsule is that it was taken back.
func (n *confirmation) look(ctx context.Context) (string, error) {
	conn, _, err := n.connect(n.old)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	answer, err := capsulev1.NewCapsuleServiceClient(conn).ConfirmNetwork(ctx, &capsulev1.ConfirmNetworkRequest{Generation: n.generation})
	if answer.GetConfirmed() { // by somebody else
		return n.old, nil
	}
	return "", err
}

// gone ends in an error: the time is over, and nobody has confirmed.
func (n *confirmation) gone(ctx context.Context) error {
	n.line.set(fmt.Sprintf("waiting until %s is back with the network that it had", n.name()))
	ctx, cancel := context.WithDeadline(ctx, n.until.Add(backMax))
	defer cancel()
	switch host, err := try(n.look).again(ctx); {
	case host != "":
		return n.arrived(host)
	case err != nil:
		return &failure{exitFailed, errors.New(grpcstatus.Convert(err).Message()), "another host to confirm it at is named with --confirm-at"}
	}
	return &failure{exitNotReady, fmt.Errorf("%s was not reached%s; its network went back at %s, and it has not answered at %s since", n.name(), n.where(), n.back(), n.old),
		"\"capsulectl discover\" shows where it is"}
}

// arrived goes on with the capsule where it is now.
func (n *confirmation) arrived(host string) error {
	a, old := n.app, n.app.client
	a.ui.note("the new network is confirmed at %s", host)
	old.conn.Close() //nolint:errcheck // it leads by the old way
	a.client = nil
	c, err := a.dial()
	if err != nil {
		return err
	}
	c.seek.proven(host)
	if c.seek.ca == "" {
		c.seek.host = host
	}
	return nil
}
