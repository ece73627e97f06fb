package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
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
	confirmEvery = time.Second      // between tries at all ways
	confirmMax   = 8 * time.Second  // of one: finding the capsule, and two calls
	lookMax      = 5 * time.Second  // for how the capsule stands, by the old way
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
			app: a, generation: m.GetGeneration(), until: time.Now().Add(manifest.TrialMax), line: statusLine{ui: a.ui}, old: c.seek.at(),
			ways: ways(c.seek.at(), at, s.GetTrial().GetBefore(), r.GetObject().GetCapsule().GetSpec().GetNetwork()),
		}
		return n.run(ctx)
	}
	return nil
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
	for time.Now().Before(n.until) {
		host, err := n.round(ctx)
		switch {
		case host != "":
			n.line.end()
			return n.arrived(host)
		case ctx.Err() != nil:
			return &failure{exitFailed, fmt.Errorf("interrupted: the new network is not confirmed, and goes back at %s by itself", n.back()), ""}
		case settled(err):
			return err
		}
		n.line.set(fmt.Sprintf("%s is not reached%s yet; its network goes back at %s", n.name(), n.where(), n.back()))
		pause(ctx, min(confirmEvery, time.Until(n.until)))
	}
	return n.gone(ctx)
}

// settled tells that a change was taken back, or will never be confirmed by us.
func settled(err error) bool {
	switch grpcstatus.Code(err) {
	case codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return true
	}
	var f *failure
	return errors.As(err, &f)
}

// round tries all ways at once, and looks by the old one what became of the change.
// Where one confirms it, that host counts; else the error that tells most.
func (n *confirmation) round(ctx context.Context) (host string, err error) {
	type answer struct {
		host string
		err  error
	}
	tries := []func(context.Context) (string, error){n.look}
	for _, way := range n.ways {
		tries = append(tries, func(ctx context.Context) (string, error) { return n.confirm(ctx, way) })
	}
	if len(n.ways) == 0 {
		tries = append(tries, func(ctx context.Context) (string, error) { return n.confirm(ctx, "") })
	}
	ctx, cancel := context.WithTimeout(ctx, confirmMax)
	defer cancel()
	answers := make(chan answer)
	for _, try := range tries {
		go func() {
			host, err := try(ctx)
			answers <- answer{host, err}
		}()
	}
	for range tries {
		a := <-answers
		switch {
		case host != "":
		case a.host != "":
			host, err = a.host, nil
			cancel() // the others are of no use
		case err == nil || settled(a.err):
			err = a.err
		}
	}
	return host, err
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

// look finds out where the capsule was whether the change was taken back already.
func (n *confirmation) look(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookMax)
	defer cancel()
	conn, _, err := n.connect(n.old)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	answer, err := capsulev1.NewObjectServiceClient(conn).Get(ctx, &capsulev1.GetRequest{Kind: manifest.KindCapsule, Name: manifest.CapsuleName})
	s := answer.GetObject().GetCapsule().GetStatus()
	if err != nil || s.GetGeneration() <= n.generation || s.GetTrial() != nil {
		return "", err
	}
	why := s.GetReverted()
	if why == "" {
		why = "another change was applied"
	}
	return "", &failure{exitFailed, fmt.Errorf("the change of the network was taken back: %s", why), ""}
}

// gone ends in an error: the time is over, and nobody has confirmed.
func (n *confirmation) gone(ctx context.Context) error {
	n.line.set(fmt.Sprintf("waiting until %s is back with the network that it had", n.name()))
	for end := n.until.Add(backMax); time.Now().Before(end) && ctx.Err() == nil; pause(ctx, confirmEvery) {
		_, err := n.look(ctx)
		var f *failure
		if errors.As(err, &f) {
			f.hint = "another host to confirm it at is named with --confirm-at"
			return f
		}
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
