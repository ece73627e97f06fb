//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/claim"
	"capsule/internal/contexts"
	"capsule/internal/identity"
)

// TestAccess runs the scripts of testdata/access against a capsule that nobody has
// claimed, at ADDRESS; its code is in the file "code". The contexts "old" and "ended"
// are of a capsule with an owner; their certificates end soon, and have ended.
func TestAccess(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/access",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, ".config"))
			dir := filepath.Join(env.WorkDir, ".capsule")
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			c, err := startUnclaimed(dir, env.Defer)
			if err != nil {
				return err
			}
			env.Setenv("ADDRESS", c.address)
			code := c.id.Offer().Code
			if err := os.WriteFile(filepath.Join(env.WorkDir, "code"), []byte(strings.ToLower(string(code))+"\n"), 0o600); err != nil {
				return err
			}
			owned := filepath.Join(env.WorkDir, ".owned")
			if err := os.Mkdir(owned, 0o700); err != nil {
				return err
			}
			other, err := startCapsule(owned, nil, env.Defer)
			if err != nil {
				return err
			}
			env.Setenv("OWNED", other.address)
			for name, life := range map[string]time.Duration{"old": 20 * 24 * time.Hour, "ended": -24 * time.Hour} {
				if err := other.saveFor(filepath.Join(env.WorkDir, ".config", "capsule"), name, capsulev1.Role_ROLE_ADMIN, life); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": code},
	})
}

func TestRolesAreThoseOfTheAPI(t *testing.T) {
	all := methods()
	if len(all) < 30 {
		t.Fatalf("only %d calls", len(all))
	}
	for i, m := range all {
		if m.role == capsulev1.Role_ROLE_UNSPECIFIED || roleNotes[m.Role] == "" {
			t.Errorf("%s.%s: role %q", m.Service, m.Method, m.Role)
		}
		if i > 0 && rank(m.role) < rank(all[i-1].role) {
			t.Errorf("%s.%s is out of order", m.Service, m.Method)
		}
	}
}

func TestLifetime(t *testing.T) {
	for text, want := range map[string]time.Duration{"90d": 90 * 24 * time.Hour, "2y": 730 * 24 * time.Hour, "36h": 36 * time.Hour} {
		if got, err := lifetime(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "d", "-1d", "0d", "1.5d", "5", "1d1", "-5h", "99999999999d", "1w"} {
		if got, err := lifetime(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestDue(t *testing.T) {
	now := time.Now()
	const day = 24 * time.Hour
	for _, c := range []struct {
		life, left time.Duration
		want       bool
	}{
		// Who was here before it was switched off for two years gets in again.
		{5 * 365 * day, 913 * day, false}, {5 * 365 * day, 912 * day, true},
		{90 * day, 46 * day, false}, {90 * day, 44 * day, true}, {time.Hour, 31 * time.Minute, false}, {time.Hour, 29 * time.Minute, true},
		{0, 61 * day, false}, {0, 59 * day, true}, {90 * day, -day, true},
	} {
		var made time.Time
		if c.life != 0 {
			made = now.Add(c.left - c.life)
		}
		if got := due(&x509.Certificate{NotAfter: now.Add(c.left)}, made, now); got != c.want {
			t.Errorf("%v of %v left: %v", c.left, c.life, got)
		}
	}
}

// listen serves connections until the test ends.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { serve(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() }) //nolint:errcheck // the test is over
	return l.Addr().String()
}

// stranger is somebody's server certificate, made as a capsule's is.
func strangers(t *testing.T) (*identity.CA, tls.Certificate) {
	t.Helper()
	ca, err := identity.NewCA("stranger")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.IssueServer(identity.ServerName)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(pair.CertPEM, pair.KeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return ca, cert
}

func claimIn(t *testing.T, host string, code claim.Code) (contexts.Context, *contexts.Store, error) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	store, err := contexts.Open(filepath.Join(home, "capsule"))
	if err != nil {
		t.Fatal(err)
	}
	a := &app{ui: &ui{in: strings.NewReader(string(code) + "\n"), out: io.Discard, err: io.Discard}}
	c, err := a.claim(t.Context(), ClaimOptions{Operator: "anna"}, host)
	return c, store, err
}

func newUnclaimed(t *testing.T) *testCapsule {
	t.Helper()
	c, err := startUnclaimed(t.TempDir(), t.Cleanup)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Somebody in between who passes all on learns nothing that is of use: the proof is
// bound to another connection than the capsule's.
func TestClaimThroughRelay(t *testing.T) {
	c := newUnclaimed(t)
	_, cert := strangers(t)
	host := listen(t, func(raw net.Conn) {
		near := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
		defer near.Close()
		far, err := tls.Dial("tcp", c.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}) //nolint:gosec // it is the attacker
		if err != nil {
			return
		}
		defer far.Close()
		go func() {
			io.Copy(far, near) //nolint:errcheck // ends with the connections
			far.Close()
		}()
		io.Copy(near, far) //nolint:errcheck // as above
	})
	_, store, err := claimIn(t, host, c.id.Offer().Code)
	if err == nil || !errors.Is(err, errWrongCode) {
		t.Errorf("claimed through a relay: %v", err)
	}
	nothingSaved(t, store)
	if c.id.Claimed() {
		t.Error("the capsule is claimed")
	}
	if _, _, err := claimIn(t, c.address, c.id.Offer().Code); err != nil {
		t.Errorf("claimed directly after it: %v", err)
	}
}

func nothingSaved(t *testing.T, store *contexts.Store) {
	t.Helper()
	if names, err := store.List(); err != nil || len(names) > 0 {
		t.Errorf("saved %q, %v", names, err)
	}
}

// liar answers each claim with a certificate of its own making.
type liar struct {
	capsulev1.UnimplementedAccessServiceServer
	ca    *identity.CA
	proof []byte
}

func (l *liar) Claim(_ context.Context, r *capsulev1.ClaimRequest) (*capsulev1.ClaimResponse, error) {
	pair, err := l.ca.IssueOperator("anna", capsulev1.Role_ROLE_ADMIN, time.Hour)
	if err != nil {
		return nil, err
	}
	cert, err := identity.ParseCert(pair.CertPEM)
	if err != nil {
		return nil, err
	}
	proof := l.proof
	if proof == nil { // the client's own
		proof = r.GetProof()
	}
	return &capsulev1.ClaimResponse{Ca: l.ca.Cert.Raw, Certificate: cert.Raw, Proof: proof, Name: "capsule-a3f2"}, nil
}

// Who says yes to any code is not believed.
func TestClaimOfLiar(t *testing.T) {
	ca, cert := strangers(t)
	for name, proof := range map[string][]byte{"none": {}, "random": make([]byte, claim.ProofSize), "echo": nil} {
		t.Run(name, func(t *testing.T) {
			srv := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
			capsulev1.RegisterAccessServiceServer(srv, &liar{ca: ca, proof: proof})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go srv.Serve(l) //nolint:errcheck // ends with Stop
			t.Cleanup(srv.Stop)
			_, store, err := claimIn(t, l.Addr().String(), claim.NewCode())
			if err == nil || !strings.Contains(err.Error(), "does not know the code") {
				t.Errorf("got %v", err)
			}
			nothingSaved(t, store)
		})
	}
}

// Who sits at a terminal may mistype.
func TestClaimTypedAgain(t *testing.T) {
	c := newUnclaimed(t)
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	typed := "a3f2\n00000-00000-00000-00000\n" + strings.ReplaceAll(strings.ToLower(string(c.id.Offer().Code)), "-", " ") + "\n"
	var errs bytes.Buffer
	a := &app{ui: &ui{in: strings.NewReader(typed), inTTY: true, out: io.Discard, err: &errs}}
	if _, err := a.claim(t.Context(), ClaimOptions{}, c.address); err != nil {
		t.Error(err)
	}
	const prompt = "Code on the capsule's console: "
	want := prompt + "warning: code: it has 4 characters of 20\n" + prompt +
		"warning: that is not the code on the capsule's console, or somebody is in between; 9 of 10 tries are left\n" + prompt
	if errs.String() != want {
		t.Errorf("got %q", &errs)
	}
}

// The capsule's answer may be lost anywhere: the same command ends what was begun,
// with the same key.
func TestClaimAnswerLost(t *testing.T) {
	lostAfterClaim := 0
	for after := int64(600); ; after += 200 {
		c := newUnclaimed(t)
		home := t.TempDir()
		t.Setenv("XDG_CONFIG_HOME", home)
		code := c.id.Offer().Code
		run := func(host string) error {
			a := &app{ui: &ui{in: strings.NewReader(string(code) + "\n"), out: io.Discard, err: io.Discard}}
			_, err := a.claim(t.Context(), ClaimOptions{Operator: "anna", Context: "kitchen"}, host)
			return err
		}
		lost := run(listen(t, cutter(c.address, after)))
		if lost == nil { // it came through
			break
		}
		if c.id.Claimed() {
			lostAfterClaim++
		}
		// By another address, so that the key is found by the code.
		if err := run(c.address); err != nil {
			t.Fatalf("after %d bytes, claimed %v, %v: again: %v", after, c.id.Claimed(), lost, err)
		}
		if n := len(c.id.List()); n != 1 {
			t.Errorf("after %d bytes: %d operators", after, n)
		}
		store, err := contexts.Open(filepath.Join(home, "capsule"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := store.Current(); err != nil || got != "kitchen" {
			t.Errorf("current is %q, %v", got, err)
		}
	}
	if lostAfterClaim == 0 {
		t.Error("no answer was lost")
	}
}

// cutter passes a connection on until so many bytes came from the capsule.
func cutter(address string, after int64) func(net.Conn) {
	return func(near net.Conn) {
		defer near.Close()
		far, err := net.Dial("tcp", address)
		if err != nil {
			return
		}
		defer far.Close()
		go func() {
			io.Copy(far, near) //nolint:errcheck // ends with the connections
			far.Close()
		}()
		io.CopyN(near, far, after) //nolint:errcheck // as above
	}
}

// A capsule that moved is found by its CA, also when another has its old address,
// and a stranger with its name is not taken for it.
func TestSeek(t *testing.T) {
	c, err := startCapsule(t.TempDir(), nil, t.Cleanup)
	if err != nil {
		t.Fatal(err)
	}
	other, err := startCapsule(t.TempDir(), nil, t.Cleanup)
	if err != nil {
		t.Fatal(err)
	}
	silent := listen(t, func(conn net.Conn) { io.Copy(io.Discard, conn); conn.Close() }) //nolint:errcheck // it ends with the asker
	const dead = "127.0.0.1:1"
	for name, test := range map[string]struct {
		host  string
		found []string
		ok    bool
		moved string
	}{
		"where it was":           {c.address, []string{other.address}, true, ""},
		"nothing there":          {dead, []string{c.address}, true, c.address},
		"another there":          {other.address, []string{c.address}, true, c.address},
		"a stranger is found":    {dead, []string{other.address}, false, ""},
		"two strangers":          {other.address, []string{dead}, false, ""},
		"found nowhere":          {dead, nil, false, ""},
		"found where it is not":  {other.address, []string{other.address}, false, ""},
		"after a liar":           {dead, []string{other.address, c.address}, true, c.address},
		"after one that is gone": {dead, []string{"127.0.0.1:2", c.address}, true, c.address},
		"after one that is mute": {dead, []string{silent, c.address}, true, c.address},
		"among many":             {other.address, []string{silent, dead, other.address, c.address, "127.0.0.1:2"}, true, c.address},
		"before all those":       {other.address, []string{c.address, silent, dead}, true, c.address},
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			t.Setenv("XDG_CONFIG_HOME", home)
			dir := filepath.Join(home, "capsule")
			if err := c.save(dir, "kitchen", capsulev1.Role_ROLE_ADMIN); err != nil {
				t.Fatal(err)
			}
			store, err := contexts.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := store.Move("kitchen", test.host); err != nil {
				t.Fatal(err)
			}
			a := &app{ui: &ui{out: io.Discard, err: io.Discard}, capsule: "kitchen"}
			defer a.close()
			if _, err := a.dial(); err != nil {
				t.Fatal(err)
			}
			a.client.seek.ca = identity.Fingerprint(c.ca.Cert) // as if it were not loopback
			a.client.seek.find = func(context.Context, string) ([]string, error) { return test.found, nil }
			_, err = capsuleInfo(t.Context(), a)
			if (err == nil) != test.ok {
				t.Fatalf("answered: %v", err)
			}
			if got := a.client.seek.movedTo(); got != test.moved {
				t.Errorf("moved to %q", got)
			}
			a.afterwards(t.Context())
			want := test.host
			if test.moved != "" {
				want = test.moved
			}
			if got, err := store.Get("kitchen"); err != nil || got.Host != want {
				t.Errorf("context says %q, %v", got.Host, err)
			}
		})
	}
}

// An address that a capsule makes for itself is gone with the link, and so it counts
// only when none that lasts has answered soon after it.
func TestSeekBest(t *testing.T) {
	const link, link4, lasting = "[fe80::1%lan0]:50000", "169.254.3.4:50000", "192.168.70.30:50000"
	type answer struct {
		after time.Duration // since the one before
		host  string        // "" is one that did not prove it
	}
	for name, c := range map[string]struct {
		answers []answer
		end     time.Duration // of whoever asked
		want    string
		took    time.Duration
	}{
		"none":                     {nil, time.Hour, "", 0},
		"nobody":                   {[]answer{{1, ""}, {1, ""}}, time.Hour, "", 2},
		"one that lasts":           {[]answer{{1, lasting}, {5, link}}, time.Hour, lasting, 1},
		"the better one later":     {[]answer{{1, link}, {betterMax - 1, lasting}}, time.Hour, lasting, betterMax},
		"the better one too late":  {[]answer{{1, link}, {betterMax + 1, lasting}}, time.Hour, link, betterMax + 1},
		"the better one fails":     {[]answer{{1, link4}, {5, ""}}, time.Hour, link4, 6},
		"two links":                {[]answer{{1, link}, {1, link4}, {1, ""}}, time.Hour, link, 3},
		"whoever asked gives up":   {[]answer{{1, link}, {9, lasting}}, 5, "", 5},
		"a better one among links": {[]answer{{0, link4}, {0, link}, {0, lasting}}, time.Hour, lasting, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), c.end)
				defer cancel()
				var open atomic.Int32
				answers := make(chan *greeted)
				go func() {
					for _, a := range c.answers {
						time.Sleep(a.after)
						var g *greeted
						if a.host != "" {
							open.Add(1)
							g = &greeted{Conn: countedConn{open: &open}, host: a.host}
						}
						select {
						case answers <- g:
						case <-ctx.Done():
							g.drop()
						}
					}
				}()
				began := time.Now()
				got, host := best(ctx, answers, len(c.answers)), ""
				took := time.Since(began)
				if got != nil {
					host = got.host
				}
				if host != c.want || took != c.took {
					t.Errorf("%q after %v, want %q after %v", host, took, c.want, c.took)
				}
				cancel()
				time.Sleep(time.Hour)
				if got.drop(); open.Load() != 0 {
					t.Errorf("%d connections stay open", open.Load())
				}
			})
		})
	}
}

// countedConn is one of those that are open.
type countedConn struct {
	net.Conn
	open *atomic.Int32
}

func (c countedConn) Close() error { c.open.Add(-1); return nil }

// renewIn is a command that renews the certificate of "kitchen".
func renewIn(t *testing.T) error {
	t.Helper()
	a := &app{ui: &ui{out: io.Discard, err: io.Discard}, capsule: "kitchen"}
	defer a.close()
	if _, err := a.dial(); err != nil {
		return err
	}
	_, err := a.renew(t.Context())
	return err
}

// kitchen is a claimed capsule and its owner's contexts.
func kitchen(t *testing.T) (*testCapsule, *contexts.Store) {
	t.Helper()
	c := newUnclaimed(t)
	_, store, err := claimIn(t, c.address, c.id.Offer().Code)
	if err != nil {
		t.Fatal(err)
	}
	made, err := store.Get("capsule-test")
	if err != nil {
		t.Fatal(err)
	}
	made.Name = "kitchen"
	if err := store.Put(made); err != nil {
		t.Fatal(err)
	}
	return c, store
}

// letIn tells that the context's certificate opens the capsule, and is the only one.
func letIn(t *testing.T, c *testCapsule) {
	t.Helper()
	a := &app{ui: &ui{out: io.Discard, err: io.Discard}, capsule: "kitchen"}
	defer a.close()
	if _, err := capsuleInfo(t.Context(), a); err != nil {
		t.Errorf("not let in: %v", err)
	}
	if all := c.id.List(); len(all) != 1 {
		t.Errorf("%d keys are let in", len(all))
	}
}

// The answer to a renewal gets lost: what is in the context goes on, and the next
// renewal asks for the same key.
func TestRenewAnswerLost(t *testing.T) {
	c, store := kitchen(t)
	a := &app{ui: &ui{out: io.Discard, err: io.Discard}, capsule: "kitchen"}
	defer a.close()
	cl, err := a.dial()
	if err != nil {
		t.Fatal(err)
	}
	key, err := store.Await("renew-" + pendingName(cl.context))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := key.Request("renew")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.access.RenewCertificate(t.Context(), &capsulev1.RenewCertificateRequest{Csr: csr}); err != nil {
		t.Fatal(err)
	}
	before, err := store.Get("kitchen")
	if err != nil {
		t.Fatal(err)
	}
	if err := renewIn(t); err != nil {
		t.Fatal(err)
	}
	after, err := store.Get("kitchen")
	if err != nil || after.Certificate == before.Certificate || after.Key == before.Key {
		t.Errorf("not renewed: %v", err)
	}
	if text, err := key.KeyPEM(); err != nil || after.Key != text {
		t.Error("another key than the one that waited")
	}
	letIn(t, c)
}

// Of commands that renew at the same time, none shuts the others out. The capsule
// answers a few of them.
func TestRenewAtOnce(t *testing.T) {
	for range 5 {
		c, store := kitchen(t)
		before, err := store.Get("kitchen")
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() {
				if err := renewIn(t); err != nil && !errors.Is(err, errRenewed) && status.Code(err) != codes.ResourceExhausted {
					t.Errorf("renew: %v", err)
				}
			})
		}
		all.Wait()
		letIn(t, c)
		if after, err := store.Get("kitchen"); err != nil || after.Key == before.Key {
			t.Errorf("not renewed: %v", err)
		}
		if waiting, err := store.PendingKeys(); err != nil || len(waiting) != 0 {
			t.Errorf("%d keys still wait, %v", len(waiting), err)
		}
	}
}

// A certificate that ends soon is renewed however its context was named; where it is
// not, its holder hears of it.
func TestRenewInPassing(t *testing.T) {
	const day = 24 * time.Hour
	const elsewhere = "127.0.0.1:1"
	for name, test := range map[string]struct {
		life            time.Duration
		host, capsule   string // "" is where the capsule is
		interrupted     bool
		renewed, warned bool
	}{
		"by name":                      {20 * day, "", "kitchen", false, true, false},
		"by address":                   {20 * day, "", "", false, true, false},
		"by address, not yet":          {90 * day, "", "", false, false, false},
		"lent to another address":      {20 * day, elsewhere, "", false, false, true},
		"lent, with time left":         {45 * day, elsewhere, "", false, false, false},
		"interrupted":                  {20 * day, "", "kitchen", true, false, true},
		"interrupted, with time left":  {45 * day, "", "kitchen", true, false, false},
		"by address, and interrupted":  {20 * day, "", "", true, false, true},
		"by name, with some time left": {45 * day, "", "kitchen", false, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			c, store := inKitchen(t, capsulev1.Role_ROLE_ADMIN, test.life)
			if err := store.Use("kitchen"); err != nil {
				t.Fatal(err)
			}
			if test.host != "" {
				if err := store.Move("kitchen", test.host); err != nil {
					t.Fatal(err)
				}
			}
			before, err := store.Get("kitchen")
			if err != nil {
				t.Fatal(err)
			}
			if test.capsule == "" {
				test.capsule = c.address
			}
			var errs bytes.Buffer
			a := &app{ui: &ui{out: io.Discard, err: &errs}, capsule: test.capsule}
			defer a.close()
			if _, err := capsuleInfo(t.Context(), a); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.interrupted {
				cancel()
			}
			a.afterwards(ctx)
			after, err := store.Get("kitchen")
			if err != nil || (after.Certificate != before.Certificate) != test.renewed || after.Host != before.Host {
				t.Errorf("renewed %v, at %s, %v", after.Certificate != before.Certificate, after.Host, err)
			}
			if got := strings.HasPrefix(errs.String(), "warning: the certificate of anna"); got != test.warned || !got && errs.Len() > 0 {
				t.Errorf("said %q", &errs)
			}
		})
	}
}

// inKitchen is a capsule, and the operator's contexts with one of that name for it.
func inKitchen(t *testing.T, role capsulev1.Role, life time.Duration) (*testCapsule, *contexts.Store) {
	t.Helper()
	c, err := startCapsule(t.TempDir(), nil, t.Cleanup)
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	dir := filepath.Join(home, "capsule")
	if err := c.saveFor(dir, "kitchen", role, life); err != nil {
		t.Fatal(err)
	}
	store, err := contexts.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c, store
}

// A certificate that is over opens nothing; an admin's is good for a new one all the
// same (AUTH-01).
func TestRenewExpired(t *testing.T) {
	for role, renews := range map[capsulev1.Role]bool{capsulev1.Role_ROLE_ADMIN: true, capsulev1.Role_ROLE_OPERATOR: false} {
		c, store := inKitchen(t, role, 2*time.Second)
		old, err := store.Get("kitchen")
		if err != nil {
			t.Fatal(err)
		}
		cert, err := old.Leaf()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.id.Admit(cert); err != nil { // it is in the list, and not over yet
			t.Fatal(err)
		}
		time.Sleep(time.Until(cert.NotAfter.Add(10 * time.Millisecond)))
		a := &app{ui: &ui{out: io.Discard, err: io.Discard}, capsule: "kitchen"}
		defer a.close()
		_, err = capsuleInfo(t.Context(), a)
		if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "expired on "+cert.NotAfter.Format(time.DateOnly)) {
			t.Errorf("%v: %v", role, err)
		}
		if f := a.explain(t.Context(), err); f.code != exitRefused || !strings.Contains(f.Error(), "was good until "+day(cert.NotAfter)) {
			t.Errorf("%v: %d, %v", role, f.code, f)
		}
		if err := renewIn(t); (err == nil) != renews {
			t.Errorf("%v renews: %v", role, err)
		}
		if renews {
			letIn(t, c)
		}
	}
}
