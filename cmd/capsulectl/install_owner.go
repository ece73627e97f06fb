package main

import (
	"context"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/contexts"
)

// owner makes sure that the machine is ours: by the context of that name, or of the
// capsule that answers, else by claiming it.
func (a *app) owner(ctx context.Context, o InstallOptions, target string) error {
	store, err := contexts.Open("")
	if err != nil {
		return err
	}
	target = bareName(target)
	if c, err := store.Get(target); err == nil {
		a.capsule = c.Name
		return nil
	} else if !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
		return err
	}
	host, err := a.claimHost(ctx, target)
	if err != nil {
		return err
	}
	a.capsule, err = contextOf(ctx, store, host)
	if err != nil || a.capsule != "" {
		return err
	}
	c, err := a.claim(ctx, ClaimOptions{Operator: o.Operator}, host)
	a.capsule = c.Name
	return err
}

// contextOf is the context of the capsule that answers there, if that lets it in; ""
// when there's none. The capsule's CA decides, as addresses change hands; that it lets
// strangers connect does not, since it goes on with that for a while after its claim.
func contextOf(ctx context.Context, store *contexts.Store, host string) (string, error) {
	names, err := store.List()
	if err != nil {
		return "", err
	}
	conn, err := handshake(ctx, host)
	if err != nil {
		return "", nil //nolint:nilerr // a claim tries for longer, and says why
	}
	defer conn.Close() //nolint:errcheck // nothing was asked
	end := &bound{tls: conn}
	for _, name := range names {
		c, err := store.Get(name)
		if err != nil {
			continue // another one may be good
		}
		ca, err := c.Authority()
		if err != nil || end.endsAt(ca) != nil {
			continue
		}
		moved := c.Host != host
		c.Host = host
		err = letsIn(ctx, c)
		if refused(err) {
			continue
		}
		if err == nil && moved {
			err = store.Move(name, host)
		}
		return name, err
	}
	return "", nil
}

// letsIn makes a call with a context, where it says and nowhere else.
func letsIn(ctx context.Context, c contexts.Context) error {
	there, err := newSeeker(c)
	if err != nil {
		return err
	}
	there.ca = "" // that address and no other
	conn, err := c.Dial(there.options()...)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // one call was made
	ctx, cancel := context.WithTimeout(ctx, callMax)
	defer cancel()
	_, err = capsulev1.NewCapsuleServiceClient(conn).Info(ctx, &capsulev1.InfoRequest{})
	return err
}

// refused tells whether a capsule, which was reached, doesn't know who calls.
func refused(err error) bool {
	s, ok := fromGRPC(err)
	return ok && (s.Code() == codes.Unauthenticated || s.Code() == codes.PermissionDenied ||
		s.Code() == codes.Unavailable && strings.Contains(s.Message(), "remote error: tls:"))
}
