package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	yaml "go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/contexts"
	"capsule/internal/identity"
)

// letterMax of a request or a grant, bytes.
const letterMax = 64 << 10

const longGrantFlow = `Letting somebody in takes three steps, and no key ever travels:

  1. Ann makes a key:        capsulectl access request --name ann > ann.csr
  2. An admin lets it in:    capsulectl access grant ann.csr --role reader > ann.grant
  3. Ann makes a context:    capsulectl access accept ann.grant

Neither file is secret. What matters is that the request is Ann's: its fingerprint is
shown to both, to be compared over the phone.`

func newAccessRequestCommand(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "request", Short: "Make a key here, and ask an admin to let it in",
		Long: longGrantFlow + `

The same name asks for the same key again until it was let in.`,
		Example: "  capsulectl access request --name ann > ann.csr",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return runAccessRequest(a, name) },
	}
	cmd.Flags().StringVar(&name, "name", "", "your name, as the capsule's list and its audit log show it (default that of this machine's user)")
	return cmd
}

func runAccessRequest(a *app, name string) error {
	if name == "" {
		name = thisUser()
	}
	store, err := contexts.Open("")
	if err != nil {
		return err
	}
	// Names are people's, and may hold what no file's name can.
	key, err := store.Await(fmt.Sprintf("request-%.16x", sha256.Sum256([]byte(name))))
	if err != nil {
		return err
	}
	der, err := key.Request(name)
	if err != nil {
		return err
	}
	request, err := identity.ParseRequest(der) // as the capsule will
	if err != nil {
		return &failure{exitUsage, err, ""}
	}
	a.ui.printf("%s", pem.EncodeToMemory(&pem.Block{Type: identity.PEMRequest, Bytes: der}))
	a.ui.note("key %s", request.KeyFingerprint())
	a.ui.note("an admin lets it in with \"capsulectl access grant FILE --role ROLE\"")
	return nil
}

// AccessGrantOptions of "access grant".
type AccessGrantOptions struct {
	Role string
	TTL  string
	Name string
}

func newAccessGrantCommand(a *app) *cobra.Command {
	var o AccessGrantOptions
	cmd := &cobra.Command{
		Use: "grant FILE|-", Short: "Let in who made a request",
		Long: longGrantFlow + `

Roles are reader, operator and admin; "capsulectl access roles" shows what each may
do. The certificate is good for a year unless --ttl says otherwise, ten at most, and
renews itself while it is in use.`,
		Example: `  capsulectl access grant ann.csr --role reader > ann.grant
  capsulectl access grant ci.csr --role operator --ttl 90d > ci.grant`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runAccessGrant(cmd.Context(), a, o, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Role, "role", "", "reader, operator or admin")
	flags.StringVar(&o.TTL, "ttl", "1y", "how long the certificate is good: 90d, 2y, 36h")
	flags.StringVar(&o.Name, "name", "", "the operator's name (default that of the request)")
	must(cmd.MarkFlagRequired("role"))
	return cmd
}

func runAccessGrant(ctx context.Context, a *app, o AccessGrantOptions, file string) error {
	role := identity.RoleNamed(o.Role)
	if role == capsulev1.Role_ROLE_UNSPECIFIED {
		return &failure{exitUsage, fmt.Errorf("role %q: want reader, operator or admin", o.Role), "\"capsulectl access roles\" shows what each may do"}
	}
	ttl, err := lifetime(o.TTL)
	if err != nil {
		return &failure{exitUsage, fmt.Errorf("ttl: %w", err), ""}
	}
	request, err := a.readRequest(file)
	if err != nil {
		return err
	}
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.GrantOperatorResponse, error) {
		return c.access.GrantOperator(ctx, &capsulev1.GrantOperatorRequest{Name: o.Name, Role: role, Csr: request, Ttl: durationpb.New(ttl)})
	})
	if err != nil {
		return err
	}
	info, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.InfoResponse, error) {
		return c.capsule.Info(ctx, &capsulev1.InfoRequest{})
	})
	if err != nil {
		return err
	}
	return a.writeGrant(info.GetName(), answer)
}

func (a *app) writeGrant(capsule string, answer *capsulev1.GrantOperatorResponse) error {
	ca, err := x509.ParseCertificate(answer.GetCa())
	if err != nil {
		return fmt.Errorf("read the capsule's CA: %w", err)
	}
	cert, err := x509.ParseCertificate(answer.GetCertificate())
	if err != nil {
		return fmt.Errorf("read the certificate: %w", err)
	}
	text, err := yaml.Marshal(contexts.Grant{Capsule: capsule, Host: a.client.context.Host, CA: certPEM(ca), Certificate: certPEM(cert)})
	if err != nil {
		return err
	}
	role, err := identity.Role(cert)
	if err != nil {
		return err
	}
	a.ui.printf("%s", text)
	a.ui.note("key %s may enter as %s, named %s, until %s", identity.KeyFingerprint(cert), identity.RoleName(role), cert.Subject.CommonName, day(cert.NotAfter))
	a.ui.note("give the grant back: \"capsulectl access accept FILE\" makes a context of it")
	return nil
}

// readRequest reads a certificate request and checks it as the capsule will.
func (a *app) readRequest(file string) ([]byte, error) {
	text, err := a.readLetter(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != identity.PEMRequest {
		return nil, &failure{exitFailed, fmt.Errorf("%s is no certificate request", letterName(file)), "\"capsulectl access request\" makes one"}
	}
	request, err := identity.ParseRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", letterName(file), err)
	}
	a.ui.note("request of %s, key %s", request.Name, request.KeyFingerprint())
	return block.Bytes, nil
}

func letterName(file string) string {
	if file == "-" {
		return "stdin"
	}
	return file
}

// readLetter reads a small file, or the standard input.
func (a *app) readLetter(file string) ([]byte, error) {
	in := a.ui.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, readError(file, err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, letterMax+1))
	if err == nil && len(text) > letterMax {
		err = fmt.Errorf("it is larger than %d bytes", letterMax)
	}
	if err != nil {
		return nil, readError(letterName(file), err)
	}
	return text, nil
}

func newAccessAcceptCommand(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "accept FILE|-", Short: "Make a context of what an admin granted",
		Long: longGrantFlow + `

It is done where the request was made: there the key is. Only a context of the same
capsule, name and role is replaced; beside any other the new one is NAME-2.`,
		Example: "  capsulectl access accept ann.grant",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return runAccessAccept(cmd.Context(), a, name, args[0]) },
	}
	cmd.Flags().StringVar(&name, "context", "", "name of the context that is made (default the capsule's name)")
	return cmd
}

func runAccessAccept(ctx context.Context, a *app, name, file string) error {
	g, cert, ca, err := a.readGrant(file)
	if err != nil {
		return err
	}
	store, err := contexts.Open("")
	if err != nil {
		return err
	}
	if name == "" {
		name = g.Capsule
	}
	c := contexts.Context{Name: name, Host: g.Host, CA: g.CA, Certificate: g.Certificate, Issued: time.Now().UTC().Truncate(time.Second)}
	key, err := store.KeyFor(cert)
	if errdefs.IsNotFound(err) {
		return &failure{exitFailed, err, "accept it where \"capsulectl access request\" was run, by the same user"}
	}
	if err != nil {
		return err
	}
	c.Key = key
	if c, err = a.add(store, c); err != nil {
		return err
	}
	if err := afterAccept(store, c, cert); err != nil {
		return err
	}
	a.ui.printf("context %s saved\n", c.Name)
	a.ui.note("the capsule's fingerprint is %s, also on its console", identity.Fingerprint(ca))
	a.firstUse(ctx, c)
	return nil
}

// afterAccept makes a saved context the current one where there was none, and forgets
// that its key was pending.
func afterAccept(store *contexts.Store, c contexts.Context, cert *x509.Certificate) error {
	if current, err := store.Current(); err == nil && current == "" {
		if err := store.Use(c.Name); err != nil {
			return err
		}
	}
	pending, err := store.PendingFor(cert)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return store.Settle(pending)
}

// readGrant reads a grant and checks that its parts belong together.
func (a *app) readGrant(file string) (g contexts.Grant, cert, ca *x509.Certificate, err error) {
	text, err := a.readLetter(file)
	if err != nil {
		return g, nil, nil, err
	}
	bad := func(err error) (contexts.Grant, *x509.Certificate, *x509.Certificate, error) {
		return contexts.Grant{}, nil, nil, &failure{exitFailed, fmt.Errorf("%s is no grant: %w", letterName(file), withoutClass(err)), "\"capsulectl access grant\" makes one"}
	}
	if err := yaml.Unmarshal(text, &g); err != nil {
		return bad(errors.New(strings.SplitN(err.Error(), "\n", 2)[0]))
	}
	if _, ok := contexts.Address(g.Host); !ok {
		return bad(fmt.Errorf("host %.80q is no address", g.Host))
	}
	if ca, err = identity.ParseCert([]byte(g.CA)); err != nil {
		return bad(fmt.Errorf("ca: %w", err))
	}
	if cert, err = identity.ParseCert([]byte(g.Certificate)); err != nil {
		return bad(fmt.Errorf("certificate: %w", err))
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return bad(fmt.Errorf("the certificate is not from this CA: %w", err))
	}
	if _, err := identity.Role(cert); err != nil {
		return bad(err)
	}
	return g, cert, ca, nil
}
