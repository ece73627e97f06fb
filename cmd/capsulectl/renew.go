package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/contexts"
	"capsule/internal/identity"
)

// When a certificate is renewed, and when its holder is told that it was not.
const (
	renewLeft = 60 * 24 * time.Hour // of one whose life isn't known; else half of that
	warnLeft  = 30 * 24 * time.Hour
	renewMax  = 10 * time.Second // of a renewal that nobody asked for
)

func newAccessRenewCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "renew", Short: "Replace your key and certificate by new ones",
		Long: `Makes a new key here, gets a certificate for it with the same name and role, and puts
both into the context. The old key is good until the new one is first used.

This happens by itself, with any command, once less than half of the certificate's life
is left: a machine that is switched off for long finds one that is good for as long.`,
		Example: "  capsulectl access renew",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := a.dial(); err != nil {
				return err
			}
			cert, err := a.renew(cmd.Context())
			if err != nil {
				return err
			}
			a.renewed = true
			a.ui.printf("the certificate of %s is good until %s\n", cert.Subject.CommonName, day(cert.NotAfter))
			return nil
		},
	}
}

// due tells whether a certificate is to be renewed. One of which is not known when
// it was made has a life of any length.
func due(cert *x509.Certificate, made, now time.Time) bool {
	left := renewLeft
	if !made.IsZero() {
		left = cert.NotAfter.Sub(made) / 2
	}
	return cert.NotAfter.Sub(now) < left
}

// afterwards is done once a command has ended whose capsule answered: what it
// brought to light about the context is noted there.
func (a *app) afterwards(ctx context.Context) {
	if a.client == nil || !a.answered.Load() {
		return
	}
	if ctx.Err() == nil {
		a.noteMove()
	}
	cert, err := a.client.context.Leaf()
	now := time.Now()
	if err != nil || a.renewed || !due(cert, a.client.context.Issued, now) {
		return
	}
	if err := a.renewInPassing(ctx); err != nil && !errors.Is(err, errRenewed) && cert.NotAfter.Sub(now) < warnLeft {
		a.ui.warn(fmt.Sprintf("the certificate of %s for %s ends on %s, and was not renewed: %v", cert.Subject.CommonName, a.where(), day(cert.NotAfter), a.explain(ctx, err)))
	}
}

// renewInPassing doesn't keep whoever wants to be back at the prompt.
func (a *app) renewInPassing(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, renewMax)
	defer cancel()
	_, err := a.renew(ctx)
	return err
}

// noteMove writes down where the capsule was found, if not where it was before.
func (a *app) noteMove() {
	host := a.client.seek.movedTo()
	if host == "" {
		return
	}
	store, err := contexts.Open("")
	if err == nil {
		err = store.Move(a.client.saved, host)
	}
	if err != nil {
		a.ui.warn(fmt.Sprintf("%s was found at %s, which could not be noted: %v", a.where(), host, err))
		return
	}
	a.ui.note("capsule %q is now at %s; its context says so too", a.client.saved, host)
}

// renew gets a certificate for a new key. The key is on the disk before it is
// asked for, and the certificate in the context before the key is no more pending:
// whatever is cut, either the old or the new one works.
func (a *app) renew(ctx context.Context) (*x509.Certificate, error) {
	c := a.client
	if c.saved == "" {
		return nil, &failure{exitUsage, errors.New("the keys are those of a context with another address, and are renewed by its name"), "name it with --capsule"}
	}
	store, err := contexts.Open("")
	if err != nil {
		return nil, err
	}
	key, err := store.Await("renew-" + pendingName(c.context))
	if err != nil {
		return nil, err
	}
	// Another command may have renewed it meanwhile: its key must not be pushed out.
	if now, err := store.Get(c.saved); err != nil || now.Certificate != c.context.Certificate {
		return nil, errors.Join(err, store.Settle(key), errRenewed)
	}
	csr, err := key.Request("renew") // the capsule knows the name
	if err != nil {
		return nil, err
	}
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.RenewCertificateResponse, error) {
		return c.access.RenewCertificate(ctx, &capsulev1.RenewCertificateRequest{Csr: csr})
	})
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(answer.GetCertificate())
	if err != nil {
		return nil, fmt.Errorf("read the new certificate: %w", err)
	}
	ca, err := c.context.Authority()
	if err != nil {
		return nil, err
	}
	if err := own(cert, ca, key); err != nil {
		return nil, err
	}
	text, err := key.KeyPEM()
	if err != nil {
		return nil, err
	}
	old := c.context
	old.Name = c.saved
	switch err := store.Renew(old, certPEM(cert), text, time.Now()); {
	case errdefs.IsFailedPrecondition(err): // as above, in the meantime
		return nil, errors.Join(store.Settle(key), errRenewed)
	case err != nil:
		return nil, err
	}
	return cert, store.Settle(key)
}

// errRenewed tells that there is nothing left to do.
var errRenewed = errors.New("another command has just renewed it")

// pendingName is a context's, by the key that is to be renewed: the same key in
// two contexts is not renewed twice at once.
func pendingName(c contexts.Context) string {
	cert, err := c.Leaf()
	if err != nil {
		return c.Name
	}
	return identity.KeyID(cert)[:32]
}

// expired tells that the operator's certificate is over, by this machine's clock,
// as the reason that a capsule gave for not letting it in can't.
func (a *app) expired() *failure {
	if a.client == nil {
		return nil
	}
	cert, err := a.client.context.Leaf()
	if err != nil || time.Now().Before(cert.NotAfter) {
		return nil //nolint:nilerr // what can't be read has no end
	}
	hint := accessHint
	if role, err := identity.Role(cert); err == nil && role == capsulev1.Role_ROLE_ADMIN {
		hint = "\"capsulectl access renew\" gets an admin a new one; else " + hint
	}
	return &failure{
		exitRefused, fmt.Errorf("the certificate of %s for %s was good until %s", cert.Subject.CommonName, a.where(), day(cert.NotAfter)),
		hint,
	}
}
