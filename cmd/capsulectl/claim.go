package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/claim"
	"capsule/internal/contexts"
	"capsule/internal/identity"
)

// Bounds of a claim: how often a code may be typed again, and how often an answer
// that got lost is asked for again.
const (
	claimTypes  = 5
	claimTries  = 3
	claimAgain  = time.Second
	codeLineMax = 1024 // bytes
)

// ClaimOptions of "claim".
type ClaimOptions struct {
	Operator string
	Context  string
}

func newClaimCommand(a *app) *cobra.Command {
	var o ClaimOptions
	cmd := &cobra.Command{
		Use:   "claim NAME|HOST[:PORT]",
		Short: "Become the owner of a capsule that has none",
		Long: `Asks for the code on the capsule's console, makes a key here, and becomes the
capsule's first admin; its context is then the current one. NAME is looked for on
this network ("capsulectl discover" shows what there is); HOST is an address.

The code itself is not sent. Both sides prove that they know it, bound to this one
connection, so nobody in between can take part. A code is typed in any case, with
or without dashes; where there is no terminal it is one line of the standard input.

The key is kept here before the capsule hears of it: when the answer gets lost, the
same command with the same code ends what was begun. A context of that name is replaced
only if it was yours for the same capsule; beside any other the new one is NAME-2.`,
		Example: `  capsulectl claim capsule-a3f2
  capsulectl claim 192.168.1.20 --operator anna --context kitchen`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runClaim(cmd.Context(), a, o, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Operator, "operator", "", "your name, as the capsule's list and its audit log show it (default that of this machine's user)")
	flags.StringVar(&o.Context, "context", "", "name of the context that is made (default the capsule's name)")
	return cmd
}

func runClaim(ctx context.Context, a *app, o ClaimOptions, target string) error {
	c, err := a.claim(ctx, o, target)
	if err != nil {
		return err
	}
	a.ui.printf("claimed; context %s is current\n", c.Name)
	return nil
}

// claim makes this operator the first of a capsule, asking for its code, and
// leaves a context, which is then the current one.
func (a *app) claim(ctx context.Context, o ClaimOptions, target string) (contexts.Context, error) {
	store, err := contexts.Open("")
	if err != nil {
		return contexts.Context{}, err
	}
	if o.Operator == "" {
		o.Operator = thisUser()
	}
	host, err := a.claimHost(ctx, target)
	if err != nil {
		return contexts.Context{}, err
	}
	if err := probe(ctx, host); err != nil {
		return contexts.Context{}, err
	}
	key, err := store.Await(fmt.Sprintf("%s%.16x", claimKeys, sha256.Sum256([]byte(target))))
	if err != nil {
		return contexts.Context{}, err
	}
	cl := &claimer{app: a, store: store, host: host, operator: o.Operator, key: key}
	won, err := cl.ask(ctx, bufio.NewReaderSize(a.ui.in, codeLineMax))
	if err != nil {
		return contexts.Context{}, err
	}
	c, err := won.save(store, o.Context)
	if err != nil {
		return c, err
	}
	a.firstUse(ctx, c)
	return c, nil
}

// thisUser is a name for somebody who gave none.
func thisUser() string {
	u, err := user.Current()
	if err != nil {
		return "admin"
	}
	name := u.Username
	if i := strings.LastIndexAny(name, `\/`); i >= 0 { // of Windows: DOMAIN\name
		name = name[i+1:]
	}
	if name = strings.Join(strings.Fields(name), "-"); name == "" {
		return "admin"
	}
	return name
}

// claimKeys is what the names of keys begin with that wait for a claim's answer.
const claimKeys = "claim-"

// claimer is one claim of one capsule.
type claimer struct {
	app      *app
	store    *contexts.Store
	host     string
	operator string
	key      contexts.Pending
}

// won is what a claim brought, believed already.
type won struct {
	claimer     *claimer
	ca          *x509.Certificate
	certificate *x509.Certificate
	name        string // of the capsule
}

// ask tries the codes that are typed until one is right.
func (cl *claimer) ask(ctx context.Context, in *bufio.Reader) (*won, error) {
	for typed := 1; ; typed++ {
		code, err := cl.app.readCode(in)
		if err == nil {
			var w *won
			if w, err = cl.claim(ctx, code); err == nil {
				return w, nil
			}
		}
		if !errors.Is(err, errWrongCode) {
			return nil, err
		}
		if !cl.app.ui.inTTY || typed == claimTypes {
			return nil, &failure{exitRefused, err, "read the code on the capsule's console again, then repeat the command"}
		}
		cl.app.ui.warn(err.Error())
	}
}

// errWrongCode marks what another code may put right.
var errWrongCode = errors.New("wrong code")

// wrongCode is a sentence about a code that was not right.
type wrongCode struct{ text string }

func (e wrongCode) Error() string        { return e.text }
func (e wrongCode) Is(target error) bool { return target == errWrongCode }

// readCode reads one line. What can't be a code costs no try on the capsule.
func (a *app) readCode(in *bufio.Reader) (claim.Code, error) {
	a.ui.prompt("Code on the capsule's console: ")
	line, err := in.ReadSlice('\n')
	if err != nil && len(line) == 0 {
		return "", &failure{exitUsage, errors.New("no code given"), "type it, or give it as a line of the standard input"}
	}
	code, err := claim.ParseCode(string(line))
	if err != nil {
		return "", wrongCode{withoutClass(err).Error()}
	}
	return code, nil
}

// claim proves the code. A capsule that is claimed already may be so by a key of
// ours: its answer got lost, and it had another name or address then.
func (cl *claimer) claim(ctx context.Context, code claim.Code) (*won, error) {
	w, err := cl.insist(ctx, code)
	if grpcstatus.Code(err) != codes.AlreadyExists {
		return w, cl.explain(err)
	}
	waiting, listErr := cl.store.PendingKeys()
	if listErr != nil {
		return nil, listErr
	}
	mine := cl.key
	for _, key := range waiting {
		if !strings.HasPrefix(key.ID, claimKeys) || key.ID == mine.ID {
			continue
		}
		cl.key = key
		if w, err := cl.insist(ctx, code); err == nil {
			return w, cl.store.Settle(mine)
		}
	}
	cl.key = mine
	return nil, cl.explain(err)
}

// insist asks again, with the same key, for an answer that got lost.
func (cl *claimer) insist(ctx context.Context, code claim.Code) (*won, error) {
	for try := 1; ; try++ {
		w, err := cl.once(ctx, code)
		if try == claimTries || grpcstatus.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return w, err
		}
		pause(ctx, claimAgain)
	}
}

func (cl *claimer) once(ctx context.Context, code claim.Code) (*won, error) {
	ctx, cancel := context.WithTimeout(ctx, callMax)
	defer cancel()
	key, err := code.Key()
	if err != nil {
		return nil, err
	}
	csr, err := cl.key.Request(cl.operator)
	if err != nil {
		return nil, err
	}
	b, err := bind(ctx, cl.host)
	if err != nil {
		return nil, err
	}
	defer b.close()
	answer, err := capsulev1.NewAccessServiceClient(b.conn).Claim(ctx, &capsulev1.ClaimRequest{Csr: csr, Proof: key.ClientProof(b.export, csr)})
	if err != nil {
		return nil, err
	}
	return cl.believe(key, b, answer)
}

// believe checks that the answer is from the capsule with the code, over a
// connection that ends in that capsule, before anything of it is used.
func (cl *claimer) believe(key claim.Key, b *bound, answer *capsulev1.ClaimResponse) (*won, error) {
	if !claim.Equal(key.ServerProof(b.export, answer.GetCa(), answer.GetCertificate()), answer.GetProof()) {
		return nil, errors.New("what answers does not know the code")
	}
	ca, err := x509.ParseCertificate(answer.GetCa())
	if err != nil {
		return nil, fmt.Errorf("read the capsule's CA: %w", err)
	}
	if err := b.endsAt(ca); err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(answer.GetCertificate())
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	if err := own(cert, ca, cl.key); err != nil {
		return nil, err
	}
	return &won{cl, ca, cert, answer.GetName()}, nil
}

// own checks that a certificate is the CA's and for the key that was made here.
func own(cert, ca *x509.Certificate, key contexts.Pending) error {
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return fmt.Errorf("the certificate is not from the capsule's CA: %w", err)
	}
	if !key.Key.PublicKey.Equal(cert.PublicKey) {
		return errors.New("the certificate is for another key")
	}
	_, err := identity.Role(cert)
	return err
}

// explain turns what went wrong into what to do.
func (cl *claimer) explain(err error) error {
	if err == nil {
		return nil
	}
	s, ok := fromGRPC(err)
	if !ok {
		var f *failure
		if errors.As(err, &f) {
			return err
		}
		return &failure{exitRefused, fmt.Errorf("capsule at %s: %w; nothing was believed or saved", cl.host, err), "somebody may be in between: try it on another network, or by a cable to the capsule"}
	}
	switch s.Code() {
	case codes.AlreadyExists:
		return claimedAlready(cl.host)
	case codes.PermissionDenied:
		return wrongCode{s.Message()}
	case codes.Unavailable, codes.DeadlineExceeded:
		return &failure{exitFailed, fmt.Errorf("capsule at %s: the answer got lost: %s", cl.host, cause(s.Message())), "repeat the command with the same code: if it was claimed, then by the key that is kept here"}
	case codes.Unimplemented:
		return &failure{exitFailed, fmt.Errorf("capsule at %s can't be claimed: its version is older than claiming", cl.host), "it was given its owner when its disk was made"}
	}
	return &failure{exitRefused, errors.New(s.Message()), ""}
}

// save makes the context, durably, and only then forgets the pending key.
func (w *won) save(store *contexts.Store, name string) (contexts.Context, error) {
	key, err := w.claimer.key.KeyPEM()
	if err != nil {
		return contexts.Context{}, err
	}
	c := contexts.Context{Host: w.claimer.host, CA: certPEM(w.ca), Certificate: certPEM(w.certificate), Key: key, Issued: time.Now().UTC().Truncate(time.Second)}
	if c.Name = name; name == "" {
		c.Name = w.name
	}
	if c, err = w.claimer.app.add(store, c); err != nil {
		return c, err
	}
	if err := store.Use(c.Name); err != nil {
		return c, err
	}
	return c, store.Settle(w.claimer.key)
}

// add saves a context, and says so when its name is not the one that was meant.
func (a *app) add(store *contexts.Store, c contexts.Context) (contexts.Context, error) {
	saved, err := store.Add(c)
	if err == nil && !strings.EqualFold(saved.Name, c.Name) {
		a.ui.note("context %s has other keys and stays as it is; the new one is %s", c.Name, saved.Name)
	}
	return saved, err
}

func certPEM(cert *x509.Certificate) string { return string(identity.EncodeCert(cert)) }

// firstUse shows the capsule that the certificate arrived. When it can't be
// reached now, any later call does the same.
func (a *app) firstUse(ctx context.Context, c contexts.Context) {
	conn, err := c.Dial()
	if err == nil {
		defer conn.Close() //nolint:errcheck // one call was made
		ctx, cancel := context.WithTimeout(ctx, callMax)
		defer cancel()
		_, err = capsulev1.NewCapsuleServiceClient(conn).Info(ctx, &capsulev1.InfoRequest{})
	}
	if err != nil {
		a.ui.warn(fmt.Sprintf("the context is saved, but the capsule does not answer to it yet: %v", a.explain(ctx, err)))
	}
}
