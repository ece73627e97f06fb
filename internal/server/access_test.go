package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/claim"
	"capsule/internal/identity"
)

// openBox is a box that nobody has claimed, with its window open.
func openBox(t *testing.T, dir string) *box {
	t.Helper()
	b := boxOf(t, dir, nil)
	b.open(t, dir, false)
	return b
}

// open lets the box be claimed; its boot never gets old.
func (b *box) open(t *testing.T, dir string, reclaim bool) {
	t.Helper()
	err := b.id.OpenClaim(identity.Claiming{State: filepath.Join(dir, "claim.json"), SinceBoot: func() time.Duration { return time.Minute }, Reclaim: reclaim})
	if err != nil {
		t.Fatal(err)
	}
}

func (b *box) code() claim.Code { return b.id.Offer().Code }

// claimer is an operator's side of a claim.
type claimer struct {
	name string
	key  *ecdsa.PrivateKey
	csr  []byte
}

func newClaimer(t *testing.T, name string) *claimer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return &claimer{name: name, key: key, csr: csr}
}

// claim asks for a certificate; believed tells whether the answer proves that its
// sender knows the code and owns this connection.
func (c *claimer) claim(ctx context.Context, address string, code claim.Code) (answer *capsulev1.ClaimResponse, believed bool, err error) {
	var state tls.ConnectionState
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error { state = cs; return nil },
	})))
	if err != nil {
		return nil, false, err
	}
	defer conn.Close()
	// The proof needs the connection: a first call that is refused makes it.
	var p peer.Peer
	_, err = capsulev1.NewAccessServiceClient(conn).Claim(ctx, &capsulev1.ClaimRequest{}, grpc.Peer(&p))
	if status.Code(err) != codes.InvalidArgument {
		return nil, false, err
	}
	state = p.AuthInfo.(credentials.TLSInfo).State
	export, err := claim.Export(state)
	if err != nil {
		return nil, false, err
	}
	key, err := code.Key()
	if err != nil {
		return nil, false, err
	}
	answer, err = capsulev1.NewAccessServiceClient(conn).Claim(ctx, &capsulev1.ClaimRequest{Csr: c.csr, Proof: key.ClientProof(export, c.csr)})
	if err != nil {
		return nil, false, err
	}
	ca, err := x509.ParseCertificate(answer.GetCa())
	believed = err == nil && claim.Equal(answer.GetProof(), key.ServerProof(export, answer.GetCa(), answer.GetCertificate())) &&
		state.PeerCertificates[0].CheckSignatureFrom(ca) == nil
	return answer, believed, nil
}

// with connects with a certificate for the claimer's key.
func (c *claimer) with(t *testing.T, address string, cert []byte) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: c.key}},
	})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func info(ctx context.Context, conn *grpc.ClientConn) error {
	_, err := capsulev1.NewCapsuleServiceClient(conn).Info(ctx, &capsulev1.InfoRequest{})
	return err
}

func TestClaim(t *testing.T) {
	dir := t.TempDir()
	b, ctx, ann := openBox(t, dir), limit(t), newClaimer(t, "ann")
	code := b.code()
	answer, believed, err := ann.claim(ctx, b.address, code)
	if err != nil || !believed || answer.GetName() != "capsule-test" {
		t.Fatalf("got %v, believed %v, %v", answer, believed, err)
	}
	if !b.id.Claimed() || b.code() != "" {
		t.Error("still unclaimed")
	}
	// The answer is lost: the same key has it again, others don't, whatever they know.
	again, believed, err := ann.claim(ctx, b.address, code)
	if err != nil || !believed || !bytes.Equal(again.GetCertificate(), answer.GetCertificate()) {
		t.Errorf("asked again: believed %v, %v", believed, err)
	}
	if _, _, err := newClaimer(t, "ben").claim(ctx, b.address, code); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the code served twice: %v", err)
	}
	if _, _, err := ann.claim(ctx, b.address, "00000-00000-00000-00000"); status.Code(err) != codes.AlreadyExists {
		t.Errorf("asked again with a wrong code: %v", err)
	}
	conn := ann.with(t, b.address, answer.GetCertificate())
	list, err := capsulev1.NewAccessServiceClient(conn).ListOperators(ctx, &capsulev1.ListOperatorsRequest{})
	if err != nil || len(list.GetOperators()) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	if o := list.GetOperators()[0]; o.GetName() != "ann" || o.GetRole() != capsulev1.Role_ROLE_ADMIN || !o.GetSelf() || o.GetGrantedBy() != "claim" || o.GetLastSeen() == nil {
		t.Errorf("got %v", o)
	}
	// The answer has arrived: the code serves nobody any more.
	if _, _, err := ann.claim(ctx, b.address, code); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the code still serves: %v", err)
	}
	if n := strings.Count(b.log.String(), "claim refused"); n == 0 || strings.Contains(b.log.String(), string(code)) {
		t.Errorf("%d refusals in the log, or the code:\n%s", n, b.log)
	}
}

// What whoever has no certificate may do on a capsule that can be claimed, from
// the descriptors: claim, and nothing else, not even reflection.
func TestNobodysRole(t *testing.T) {
	b, ctx := openBox(t, t.TempDir()), limit(t)
	conn := b.dial(t, capsulev1.Role_ROLE_UNSPECIFIED)
	eachMethod(func(m protoreflect.MethodDescriptor) {
		want := codes.Unauthenticated
		if proto.GetExtension(m.Options(), capsulev1.E_Role).(capsulev1.Role) == capsulev1.Role_ROLE_NOBODY {
			want = codes.InvalidArgument // an empty request, seen by the method
		}
		if got := call(ctx, conn, m); got != want {
			t.Errorf("%s by nobody: %v, want %v", m.FullName(), got, want)
		}
	})
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.CloseSend()
	if err := stream.RecvMsg(&capsulev1.InfoResponse{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("reflection by nobody: %v", err)
	}
	if b.id.Claimed() {
		t.Error("claimed")
	}
}

// A hundred times two operators claim at once: one gets it, and only that one.
func TestClaimRace(t *testing.T) {
	ctx := limit(t)
	for round := range 100 {
		dir := t.TempDir()
		b := openBox(t, dir)
		code := b.code()
		pair := []*claimer{newClaimer(t, "ann"), newClaimer(t, "ben")}
		answers := make([]*capsulev1.ClaimResponse, 2)
		errs := make([]error, 2)
		var both sync.WaitGroup
		start := make(chan struct{})
		for i, c := range pair {
			both.Go(func() {
				<-start
				var believed bool
				answers[i], believed, errs[i] = c.claim(ctx, b.address, code)
				if errs[i] == nil && !believed {
					t.Error("the winner has no proof")
				}
			})
		}
		close(start)
		both.Wait()
		winner := 0
		if errs[0] != nil {
			winner = 1
		}
		if errs[winner] != nil || status.Code(errs[1-winner]) != codes.AlreadyExists {
			t.Fatalf("round %d: %v, %v", round, errs[0], errs[1])
		}
		if all := b.id.List(); len(all) != 1 || all[0].Name != pair[winner].name {
			t.Fatalf("round %d: let in: %+v", round, all)
		}
		if err := info(ctx, pair[winner].with(t, b.address, answers[winner].GetCertificate())); err != nil {
			t.Fatalf("round %d: the winner: %v", round, err)
		}
	}
}

func TestWrongCodes(t *testing.T) {
	dir := t.TempDir()
	b, ctx := openBox(t, dir), limit(t)
	right := b.code()
	for n := range identity.ClaimTriesMax {
		if _, _, err := newClaimer(t, "eve").claim(ctx, b.address, claim.NewCode()); status.Code(err) != codes.PermissionDenied {
			t.Fatalf("try %d: %v", n, err)
		}
	}
	_, _, err := newClaimer(t, "ann").claim(ctx, b.address, right)
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "switch it off and on") {
		t.Errorf("after %d tries: %v", identity.ClaimTriesMax, err)
	}
	if b.id.Claimed() {
		t.Error("claimed")
	}
}

// relay passes a client's connection on to a server, over a TLS connection of its
// own on either side, as somebody in the middle must. It passes gRPC untouched, but
// for what change makes of what the server answers.
func relay(t *testing.T, server string) (address string) {
	t.Helper()
	ca, err := identity.NewCA("capsule")
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
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	t.Cleanup(func() { listener.Close(); open.Wait() })
	open.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			open.Go(func() {
				defer near.Close()
				far, err := tls.Dial("tcp", server, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
				if err != nil {
					return
				}
				defer far.Close()
				open.Go(func() { _, _ = io.Copy(far, near); far.Close() })
				_, _ = io.Copy(near, far)
			})
		}
	})
	return listener.Addr().String()
}

// Somebody in between who passes all on gains nothing: the proof is of another
// connection.
func TestRelayedClaim(t *testing.T) {
	b, ctx, ann := openBox(t, t.TempDir()), limit(t), newClaimer(t, "ann")
	code := b.code()
	if _, _, err := ann.claim(ctx, relay(t, b.address), code); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "in between") {
		t.Errorf("relayed: %v", err)
	}
	if b.id.Claimed() {
		t.Fatal("claimed")
	}
	if _, believed, err := ann.claim(ctx, b.address, code); err != nil || !believed {
		t.Errorf("directly: believed %v, %v", believed, err)
	}
}

// liar is somebody who plays the capsule without knowing the code; replay answers
// with the proof of an earlier claim, if there is one.
type liar struct {
	capsulev1.UnimplementedAccessServiceServer
	ca     *identity.CA
	replay []byte
	seen   chan []byte // proofs of clients
}

func (l *liar) Claim(ctx context.Context, req *capsulev1.ClaimRequest) (*capsulev1.ClaimResponse, error) {
	if len(req.GetProof()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "no proof")
	}
	l.seen <- req.GetProof()
	_, state, err := connection(ctx)
	if err != nil {
		return nil, err
	}
	export, err := claim.Export(state)
	if err != nil {
		return nil, err
	}
	r, err := identity.ParseRequest(req.GetCsr())
	if err != nil {
		return nil, err
	}
	certPEM, err := l.ca.Issue(r, capsulev1.Role_ROLE_ADMIN, time.Hour)
	if err != nil {
		return nil, err
	}
	cert, err := identity.ParseCert(certPEM)
	if err != nil {
		return nil, err
	}
	proof := l.replay
	if proof == nil { // the best guess there is
		key, err := claim.NewCode().Key()
		if err != nil {
			return nil, err
		}
		proof = key.ServerProof(export, l.ca.Cert.Raw, cert.Raw)
	}
	return &capsulev1.ClaimResponse{Ca: l.ca.Cert.Raw, Certificate: cert.Raw, Proof: proof, Name: "capsule-test"}, nil
}

// Somebody who lies is not believed, and what they saw serves nowhere.
func TestLyingCapsule(t *testing.T) {
	b, ctx, ann := openBox(t, t.TempDir()), limit(t), newClaimer(t, "ann")
	code := b.code()
	for name, replay := range map[string][]byte{"guessed": nil, "replayed": bytes.Repeat([]byte{7}, claim.ProofSize)} {
		ca, err := identity.NewCA("capsule")
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
		l := &liar{ca: ca, replay: replay, seen: make(chan []byte, 1)}
		s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})))
		capsulev1.RegisterAccessServiceServer(s, l)
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = s.Serve(listener) }()
		t.Cleanup(s.Stop)
		if _, believed, err := ann.claim(ctx, listener.Addr().String(), code); err != nil || believed {
			t.Errorf("%s: believed %v, %v", name, believed, err)
		}
		// What ann proved to the liar is no proof to the capsule.
		conn := b.dial(t, capsulev1.Role_ROLE_UNSPECIFIED)
		_, err = capsulev1.NewAccessServiceClient(conn).Claim(ctx, &capsulev1.ClaimRequest{Csr: ann.csr, Proof: <-l.seen})
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: the client's proof serves elsewhere: %v", name, err)
		}
	}
	if b.id.Claimed() {
		t.Error("claimed")
	}
}

// admin claims a box and gives the connection of its admin.
func admin(t *testing.T) (b *box, ann *claimer, conn *grpc.ClientConn) {
	t.Helper()
	b, ann = openBox(t, t.TempDir()), newClaimer(t, "ann")
	answer, _, err := ann.claim(limit(t), b.address, b.code())
	if err != nil {
		t.Fatal(err)
	}
	return b, ann, ann.with(t, b.address, answer.GetCertificate())
}

func TestGrantAndRevoke(t *testing.T) {
	b, _, conn := admin(t)
	ctx := limit(t)
	as, ben := capsulev1.NewAccessServiceClient(conn), newClaimer(t, "ben")
	granted, err := as.GrantOperator(ctx, &capsulev1.GrantOperatorRequest{Role: capsulev1.Role_ROLE_OPERATOR, Csr: ben.csr})
	if err != nil {
		t.Fatal(err)
	}
	bens := ben.with(t, b.address, granted.GetCertificate())
	if err := info(ctx, bens); err != nil {
		t.Fatal(err)
	}
	if _, err := capsulev1.NewAccessServiceClient(bens).RevokeOperator(ctx, &capsulev1.RevokeOperatorRequest{Name: "ann"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an operator revokes: %v", err)
	}
	// A stream that is under way ends with its operator's key, and so does the connection.
	watch, err := capsulev1.NewObjectServiceClient(bens).Watch(ctx, &capsulev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	revoked, err := as.RevokeOperator(ctx, &capsulev1.RevokeOperatorRequest{Name: "ben"})
	if err != nil || len(revoked.GetOperators()) != 1 || revoked.GetOperators()[0].GetName() != "ben" {
		t.Fatalf("%v, %v", revoked, err)
	}
	for err = nil; err == nil; _, err = watch.Recv() { //nolint:revive // until it ends
	}
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("the stream of a revoked operator: %v", err)
	}
	if err := info(ctx, bens); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the connection of a revoked operator: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := info(short, ben.with(t, b.address, granted.GetCertificate())); status.Code(err) != codes.Unavailable {
		t.Errorf("a new connection of a revoked operator: %v", err)
	}
	if !strings.Contains(b.log.String(), "was revoked, or never granted") {
		t.Errorf("the log has no reason:\n%s", b.log)
	}
	if _, err := as.RevokeOperator(ctx, &capsulev1.RevokeOperatorRequest{Name: "ann"}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "nobody else is an admin") {
		t.Errorf("the last admin is revoked: %v", err)
	}
}

func TestGrantRefuses(t *testing.T) {
	_, ann, conn := admin(t)
	ctx, as := limit(t), capsulev1.NewAccessServiceClient(conn)
	reader := capsulev1.Role_ROLE_READER
	spaced, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "a b\n"}}, ann.key)
	if err != nil {
		t.Fatal(err)
	}
	broken := bytes.Clone(newClaimer(t, "ben").csr)
	broken[len(broken)-1] ^= 1
	for name, c := range map[string]struct {
		req  *capsulev1.GrantOperatorRequest
		want codes.Code
	}{
		"no request":    {&capsulev1.GrantOperatorRequest{Role: reader}, codes.InvalidArgument},
		"no role":       {&capsulev1.GrantOperatorRequest{Csr: newClaimer(t, "ben").csr}, codes.InvalidArgument},
		"nobody's role": {&capsulev1.GrantOperatorRequest{Csr: newClaimer(t, "ben").csr, Role: capsulev1.Role_ROLE_NOBODY}, codes.InvalidArgument},
		"eleven years":  {&capsulev1.GrantOperatorRequest{Csr: newClaimer(t, "ben").csr, Role: reader, Ttl: durationpb.New(11 * 365 * 24 * time.Hour)}, codes.InvalidArgument},
		"no time":       {&capsulev1.GrantOperatorRequest{Csr: newClaimer(t, "ben").csr, Role: reader, Ttl: durationpb.New(0)}, codes.InvalidArgument},
		"key in use":    {&capsulev1.GrantOperatorRequest{Csr: ann.csr, Role: reader}, codes.AlreadyExists},
		"bad name":      {&capsulev1.GrantOperatorRequest{Csr: spaced, Role: reader}, codes.InvalidArgument},
		"not its key":   {&capsulev1.GrantOperatorRequest{Csr: broken, Role: reader}, codes.InvalidArgument},
		"huge request":  {&capsulev1.GrantOperatorRequest{Csr: make([]byte, 1<<20), Role: reader}, codes.InvalidArgument},
	} {
		if _, err := as.GrantOperator(ctx, c.req); status.Code(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A renewed certificate replaces the old one at its first use, not before.
func TestRenew(t *testing.T) {
	b, ann, conn := admin(t)
	ctx, as := limit(t), capsulev1.NewAccessServiceClient(conn)
	if _, err := as.RenewCertificate(ctx, &capsulev1.RenewCertificateRequest{Csr: ann.csr}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("renewed for the same key: %v", err)
	}
	var next *claimer
	var renewed *capsulev1.RenewCertificateResponse
	for range 2 { // the first answer was lost
		next = newClaimer(t, "somebody else")
		next.name = "ann"
		var err error
		if next.csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "eve"}}, next.key); err != nil {
			t.Fatal(err)
		}
		if renewed, err = as.RenewCertificate(ctx, &capsulev1.RenewCertificateRequest{Csr: next.csr}); err != nil {
			t.Fatal(err)
		}
	}
	if all := b.id.List(); len(all) != 2 || all[0].Name != "ann" || all[1].Name != "ann" {
		t.Fatalf("let in: %+v", all)
	}
	if err := info(ctx, conn); err != nil {
		t.Errorf("the old certificate, before the new one is used: %v", err)
	}
	cert, err := x509.ParseCertificate(renewed.GetCertificate())
	if err != nil || cert.Subject.CommonName != "ann" {
		t.Fatalf("%v, %v", cert.Subject, err)
	}
	if life := time.Until(cert.NotAfter); life < identity.ClaimLife-time.Hour {
		t.Errorf("renewed for %v", life)
	}
	if err := info(ctx, next.with(t, b.address, renewed.GetCertificate())); err != nil {
		t.Fatal(err)
	}
	if err := info(ctx, conn); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the old certificate, after the new one was used: %v", err)
	}
	if all := b.id.List(); len(all) != 1 {
		t.Errorf("let in: %+v", all)
	}
}
