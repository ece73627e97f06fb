package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/audit"
)

// guarded is a box with an admin, ann, and ben, whom she let in with a role.
type guarded struct {
	*box
	ann  capsulev1.AccessServiceClient
	ben  *claimer
	bens []byte // certificate
	conn *grpc.ClientConn
}

func newGuarded(t *testing.T, role capsulev1.Role, change func(*Options)) *guarded {
	t.Helper()
	dir, ctx := t.TempDir(), limit(t)
	g := &guarded{box: boxOf(t, dir, change), ben: newClaimer(t, "ben")}
	g.open(t, dir, false)
	ann := newClaimer(t, "ann")
	answer, _, err := ann.claim(ctx, g.address, g.code())
	if err != nil {
		t.Fatal(err)
	}
	g.ann = capsulev1.NewAccessServiceClient(ann.with(t, g.address, answer.GetCertificate()))
	granted, err := g.ann.GrantOperator(ctx, &capsulev1.GrantOperatorRequest{Role: role, Csr: g.ben.csr})
	if err != nil {
		t.Fatal(err)
	}
	g.bens = granted.GetCertificate()
	g.conn = g.ben.with(t, g.address, g.bens)
	return g
}

func (g *guarded) revoke(t *testing.T) {
	t.Helper()
	if _, err := g.ann.RevokeOperator(limit(t), &capsulev1.RevokeOperatorRequest{Name: "ben"}); err != nil {
		t.Fatal(err)
	}
}

// Whatever who is not let in calls, and how often, the system's log stays small.
func TestRefusedCallsFillNoLog(t *testing.T) {
	g, ctx := newGuarded(t, capsulev1.Role_ROLE_READER, nil), limit(t)
	lines := func() int { return strings.Count(g.log.String(), "\n") }
	eachMethod(func(m protoreflect.MethodDescriptor) {
		if m.Name() != "Reboot" && m.Name() != "Claim" {
			return
		}
		before := lines()
		for range 5 * refusalsBurst {
			if call(ctx, g.conn, m) == codes.OK {
				t.Errorf("%s is not refused", m.Name())
			}
		}
		if n := lines() - before; n > refusalsBurst+10 {
			t.Errorf("%s: %d lines for %d calls", m.Name(), n, 5*refusalsBurst)
		}
	})
}

// Each key has its own refusals in the log: one that is used up hides no other.
func TestRefusalsByKey(t *testing.T) {
	var text strings.Builder
	log, r := slog.New(slog.NewTextHandler(&text, nil)), newRefusals()
	for range 10 * refusalsBurst {
		r.log(log, byStranger, "no", "who", "stranger")
	}
	r.log(log, byClaimer, "no", "who", "claimer")
	r.log(log, "3f2a", "no", "who", "ben")
	if n := strings.Count(text.String(), "=stranger"); n > refusalsBurst+1 {
		t.Errorf("%d lines of a stranger", n)
	}
	for _, who := range []string{"claimer", "ben"} {
		if !strings.Contains(text.String(), who) {
			t.Errorf("%s is hidden", who)
		}
	}
	if !strings.Contains(text.String(), fmt.Sprint("not_logged_before=", 9*refusalsBurst)) {
		t.Errorf("not counted:\n%s", text.String())
	}
}

// slowShelf takes its time, until it is told not to.
type slowShelf struct {
	*shelf
	began chan struct{}
}

func (s slowShelf) Snapshot(ctx context.Context, _, _ string) (*capsulev1.Snapshot, error) {
	s.began <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

// A call that was let in, and cut, may have changed something: it is recorded as
// one that changes, unary or a stream.
func TestAuditOfACutCall(t *testing.T) {
	l, err := audit.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	shelf := slowShelf{newShelf(), make(chan struct{}, 1)}
	g := newGuarded(t, capsulev1.Role_ROLE_OPERATOR, func(o *Options) { o.Audit, o.Volumes = l, shelf })
	ended := make(chan error, 1)
	go func() {
		_, err := capsulev1.NewVolumeServiceClient(g.conn).Snapshot(limit(t), &capsulev1.SnapshotRequest{Volume: "data"})
		ended <- err
	}()
	<-shelf.began
	// Strangers have used up what is recorded of refusals.
	for range 1000 {
		l.Refused(audit.Record{Method: "x"}, byStranger)
	}
	g.revoke(t)
	if err := <-ended; status.Code(err) != codes.Unauthenticated {
		t.Errorf("cut: %v", err)
	}
	for _, r := range recorded(t, l) {
		if r.Method == "VolumeService/Snapshot" && r.Object == "volume/data" && r.Code == "Unauthenticated" {
			return
		}
	}
	t.Error("no record")
}

// A stream whose operator is revoked ends, whatever it waits for.
func TestRevokedStreams(t *testing.T) {
	g, ctx := newGuarded(t, capsulev1.Role_ROLE_ADMIN, func(o *Options) { o.Volumes, o.Images, o.Backups = newShelf(), struct{ Images }{}, &safe{} }), limit(t)
	streams := map[protoreflect.FullName]grpc.ClientStream{}
	eachMethod(func(m protoreflect.MethodDescriptor) {
		if !m.IsStreamingClient() {
			return
		}
		stream, err := g.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/"+string(m.Parent().FullName())+"/"+string(m.Name()))
		if err != nil {
			t.Fatal(err)
		}
		streams[m.FullName()] = stream
	})
	if err := info(ctx, g.conn); err != nil { // they are there
		t.Fatal(err)
	}
	g.revoke(t)
	for name, stream := range streams {
		if err := stream.RecvMsg(&capsulev1.InfoResponse{}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s, which waits for its caller: %v", name, err)
		}
	}
}

// And it sends nothing more, however much is left to send.
func TestRevokedStreamSendsNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "endless")); err != nil {
		t.Fatal(err)
	}
	g, ctx := newGuarded(t, capsulev1.Role_ROLE_OPERATOR, func(o *Options) { o.Runtime = hostDriver{root: dir} }), limit(t)
	if _, err := capsulev1.NewObjectServiceClient(g.conn).Apply(ctx, &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{testContainer("web")}}); err != nil {
		t.Fatal(err)
	}
	stream, err := capsulev1.NewWorkloadServiceClient(g.conn).CopyFrom(ctx, &capsulev1.CopyFromRequest{Name: "web", Path: "endless"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	g.revoke(t)
	for err = nil; err == nil; _, err = stream.Recv() { //nolint:revive // until it ends
	}
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("ended with %v", err)
	}
}

// silent is a stream whose caller is there and sends nothing.
type silent struct {
	grpc.ServerStream
	end chan struct{}
}

func (s silent) RecvMsg(any) error { <-s.end; return io.EOF }

// Of each method whose caller sends a stream it is known how long it's waited for,
// and that is not for ever where others wait.
func TestSilentStreams(t *testing.T) {
	eachMethod(func(m protoreflect.MethodDescriptor) {
		path := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
		waits := path == capsulev1.WorkloadService_Exec_FullMethodName || path == capsulev1.DebugService_Run_FullMethodName || path == capsulev1.UpdateService_Push_FullMethodName
		if m.IsStreamingClient() == (waits == owing[path]) {
			t.Errorf("%s: it owes %v", path, owing[path])
		}
	})
	for _, owes := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cut := context.WithTimeoutCause(t.Context(), 10*stallMax, errRevoked)
			defer cut()
			in := silent{end: make(chan struct{})}
			defer close(in.end)
			s, begun, class := &cutStream{ServerStream: in, ctx: ctx, owing: owes}, time.Now(), errdefs.IsUnauthorized
			waited := 10 * stallMax
			if owes {
				waited, class = stallMax, errdefs.IsAborted
			}
			for range 2 { // nor is it asked again
				if err := s.RecvMsg(nil); !class(err) || time.Since(begun) != waited {
					t.Errorf("owes %v: after %v: %v", owes, time.Since(begun), err)
				}
			}
		})
	}
}
