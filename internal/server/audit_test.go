package server

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/audit"
)

// auditedBox keeps an audit log, whose folder is the second value.
func auditedBox(t *testing.T) (*box, *audit.Log, string) {
	t.Helper()
	dir := t.TempDir()
	l, err := audit.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return newBox(t, func(o *Options) { o.Audit = l }), l, dir
}

func recorded(t *testing.T, l *audit.Log) []audit.Record {
	t.Helper()
	var list []audit.Record
	if err := l.Read(t.Context(), audit.Query{Tail: -1}, func(r audit.Record) error {
		list = append(list, r)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

// Every method that may change something leaves a record, and so does every
// refusal; a call that only reads leaves none.
func TestAuditOfEachMethod(t *testing.T) {
	b, l, _ := auditedBox(t)
	b.machine.kernel = "/dev/null"
	ctx := limit(t)
	before := 0
	for _, has := range []capsulev1.Role{capsulev1.Role_ROLE_READER, capsulev1.Role_ROLE_OPERATOR, capsulev1.Role_ROLE_ADMIN} {
		conn := b.dial(t, has)
		eachMethod(func(m protoreflect.MethodDescriptor) {
			needs := proto.GetExtension(m.Options(), capsulev1.E_Role).(capsulev1.Role)
			if m.Parent().Name() == "SupportService" && has == needs {
				return // they go on beyond their first answer: TestAuditOfSupport
			}
			code := call(ctx, conn, m)
			list := recorded(t, l)
			news := list[before:]
			before = len(list)
			if needs == capsulev1.Role_ROLE_NOBODY {
				return // TestAuditOfAccess
			}
			want := code == codes.PermissionDenied || needs > capsulev1.Role_ROLE_READER || m.Name() == "RenewCertificate"
			switch {
			case !want && len(news) > 0:
				t.Errorf("%s by %v: recorded %+v", m.FullName(), has, news)
			case !want:
			case len(news) != 1:
				t.Errorf("%s by %v, %v: %d records", m.FullName(), has, code, len(news))
			case news[0].Code != code.String() || news[0].Operator != "anna" || news[0].Key == "" || news[0].From == "" ||
				!strings.HasSuffix(string(m.FullName()), strings.ReplaceAll(news[0].Method, "/", ".")):
				t.Errorf("%s by %v, %v: recorded %+v", m.FullName(), has, code, news[0])
			}
		})
	}
}

func TestAudit(t *testing.T) {
	b, l, dir := auditedBox(t)
	admin, reader := b.dial(t, capsulev1.Role_ROLE_ADMIN), b.dial(t, capsulev1.Role_ROLE_READER)
	ctx := limit(t)
	begun := time.Now()
	objects, images := capsulev1.NewObjectServiceClient(admin), capsulev1.NewImageServiceClient(admin)
	if _, err := objects.Apply(ctx, &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{testContainer("web")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := images.SetRegistry(ctx, &capsulev1.SetRegistryRequest{
		Registry: &capsulev1.Registry{Host: "registry.example", Username: "ann"}, Password: "hush-hush",
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := capsulev1.NewObjectServiceClient(reader).Delete(ctx, &capsulev1.DeleteRequest{Kind: "Container", Name: "web"}); err == nil {
		t.Fatal("a reader deletes")
	}
	execute(ctx, t, capsulev1.NewWorkloadServiceClient(admin))

	client := capsulev1.NewCapsuleServiceClient(admin)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Audit(ctx, &capsulev1.AuditRequest{Tail: -1, Follow: true, Since: timestamppb.New(begun)})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ObjectService/Apply container/web OK",
		"ImageService/SetRegistry registry/registry.example OK",
		"ObjectService/Delete container/web PermissionDenied",
		"WorkloadService/Exec workload/web OK",
		"ObjectService/Apply container/second (dry run) OK", // made below
	} {
		if strings.Contains(want, "dry run") {
			if _, err := objects.Apply(ctx, &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{testContainer("second")}, DryRun: true}); err != nil {
				t.Fatal(err)
			}
		}
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join([]string{r.GetMethod(), r.GetObject(), r.GetCode()}, " "); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if r.GetOperator() != "anna" || r.GetKeyFingerprint() == "" || r.GetTime().AsTime().Before(begun) || (r.GetCode() == "OK") != (r.GetMessage() == "") {
			t.Errorf("record %v", r)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), "hush") {
			t.Errorf("%s holds a secret: %s", f, data)
		}
	}
}

// Who came in, and how: also whose name the request does not hold as such.
func TestAuditOfAccess(t *testing.T) {
	dir := t.TempDir()
	l, err := audit.Open(filepath.Join(dir, "audit"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := boxOf(t, dir, func(o *Options) { o.Audit = l })
	b.open(t, dir, false)
	ctx, ann, ben := limit(t), newClaimer(t, "ann"), newClaimer(t, "ben")
	if _, _, err := ben.claim(ctx, b.address, "00000-00000-00000-00000"); err == nil {
		t.Fatal("claimed without the code")
	}
	answer, _, err := ann.claim(ctx, b.address, b.code())
	if err != nil {
		t.Fatal(err)
	}
	as := capsulev1.NewAccessServiceClient(ann.with(t, b.address, answer.GetCertificate()))
	if _, err := as.GrantOperator(ctx, &capsulev1.GrantOperatorRequest{Role: capsulev1.Role_ROLE_READER, Csr: ben.csr}); err != nil {
		t.Fatal(err)
	}
	if _, err := as.RenewCertificate(ctx, &capsulev1.RenewCertificateRequest{Csr: newClaimer(t, "ann").csr}); err != nil {
		t.Fatal(err)
	}
	if _, err := as.RevokeOperator(ctx, &capsulev1.RevokeOperatorRequest{Name: "ben"}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range recorded(t, l) {
		got = append(got, strings.Join([]string{r.Operator, strings.TrimPrefix(r.Method, "AccessService/"), r.Object, r.Code}, " "))
	}
	want := []string{
		"nobody Claim  PermissionDenied", "nobody Claim operator/ann OK", "ann GrantOperator operator/ben OK",
		"ann RenewCertificate operator/ann OK", "ann RevokeOperator operator/ben OK",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Nobody pushes what was changed out of the log: neither a reader, by the one change
// that it may make, nor an operator by calls that come to nothing. What did change
// something has its record whatever came before, and all calls are counted.
func TestAuditIsNotFlooded(t *testing.T) {
	l, err := audit.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := newGuarded(t, capsulev1.Role_ROLE_OPERATOR, func(o *Options) { o.Audit = l })
	ctx, as, objects := limit(t), capsulev1.NewAccessServiceClient(g.conn), capsulev1.NewObjectServiceClient(g.conn)
	const times = 300
	made := 0
	name := func() string { made++; return fmt.Sprint("y", made) }
	before := len(recorded(t, l))
	for what, try := range map[string]func(){
		"garbage": func() { _, _ = as.RenewCertificate(ctx, &capsulev1.RenewCertificateRequest{Csr: []byte("x")}) },
		"renewal": func() {
			_, _ = as.RenewCertificate(ctx, &capsulev1.RenewCertificateRequest{Csr: newClaimer(t, "x").csr})
		},
		"dry run": func() {
			_, _ = objects.Apply(ctx, &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{testContainer("x")}, DryRun: true})
		},
		"no such": func() { _, _ = objects.Delete(ctx, &capsulev1.DeleteRequest{Kind: "Container", Name: "x"}) },
		"a change": func() {
			_, _ = objects.Apply(ctx, &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{testContainer(name())}})
		},
	} {
		t.Run(what, func(t *testing.T) {
			for range times {
				try()
			}
		})
	}
	records, calls, applied := recorded(t, l), 0, 0
	for _, r := range records[before:] {
		calls += 1 + r.Lost
		if strings.HasPrefix(r.Object, "container/y") && r.Code == "OK" {
			applied++
		}
	}
	if applied != times || len(records) > times+150 {
		t.Errorf("%d records, %d of %d changes", len(records), applied, times)
	}
	_, _ = objects.Apply(ctx, &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{testContainer(name())}})
	if records = recorded(t, l); calls+1+records[len(records)-1].Lost != 5*times+1 {
		t.Errorf("%d calls are told of, want %d", calls+1+records[len(records)-1].Lost, 5*times+1)
	}
}

func testContainer(name string) *capsulev1.Object {
	return &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: "Container", Name: name},
		Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Spec: &capsulev1.WorkloadSpec{Image: "web:1"}}},
	}
}

// execute runs a command with a secret in its environment to its end.
func execute(ctx context.Context, t *testing.T, c capsulev1.WorkloadServiceClient) {
	t.Helper()
	stream, err := c.Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Start{Start: &capsulev1.ExecStart{
		Name: "web", Command: []string{"true", "hush"}, Env: []string{"TOKEN=hush-hush"},
	}}}); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
}

func TestObjectOf(t *testing.T) {
	many := &capsulev1.ApplyRequest{}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		many.Objects = append(many.Objects, testContainer(name))
	}
	for _, c := range []struct {
		method string
		req    proto.Message
		want   string
	}{
		{capsulev1.ObjectService_Apply_FullMethodName, many, "container/a, container/b, container/c, container/d, container/e, and 2 more"},
		{capsulev1.ObjectService_Delete_FullMethodName, &capsulev1.DeleteRequest{Kind: "MicroVM", Name: "vm"}, "microvm/vm"},
		{capsulev1.WorkloadService_Stop_FullMethodName, &capsulev1.StopRequest{Name: "web"}, "workload/web"},
		{capsulev1.WorkloadService_Exec_FullMethodName, &capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Start{Start: &capsulev1.ExecStart{Name: "web", Command: []string{"x"}}}}, "workload/web"},
		{capsulev1.WorkloadService_Exec_FullMethodName, &capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Stdin{Stdin: []byte("x")}}, ""},
		{capsulev1.VolumeService_Delete_FullMethodName, &capsulev1.VolumeServiceDeleteRequest{Name: "data"}, "volume/data"},
		{capsulev1.VolumeService_Snapshot_FullMethodName, &capsulev1.SnapshotRequest{Volume: "data", Name: "monday"}, "volume/data/monday"},
		{capsulev1.VolumeService_Clone_FullMethodName, &capsulev1.CloneRequest{Volume: "data", Snapshot: "monday", Name: "copy"}, "volume/data/monday/copy"},
		{capsulev1.ImageService_DeleteRegistry_FullMethodName, &capsulev1.DeleteRegistryRequest{Host: "r.example"}, "registry/r.example"},
		{capsulev1.ImageService_Prune_FullMethodName, &capsulev1.PruneRequest{DryRun: true}, "(dry run)"},
		{capsulev1.AccessService_RevokeOperator_FullMethodName, &capsulev1.RevokeOperatorRequest{Name: "ann"}, "operator/ann"},
		{capsulev1.CapsuleService_RestartService_FullMethodName, &capsulev1.RestartServiceRequest{Service: "containerd"}, "service/containerd"},
		{capsulev1.CapsuleService_Reboot_FullMethodName, &capsulev1.RebootRequest{}, ""},
	} {
		if got := objectOf(c.method, c.req); got != c.want {
			t.Errorf("%s: %q, want %q", c.method, got, c.want)
		}
	}
}

// A call that goes on is recorded before its end, and again then.
func TestAuditOfALongCall(t *testing.T) {
	dir := t.TempDir()
	l, err := audit.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const method = capsulev1.WorkloadService_Exec_FullMethodName
	a := &auditor{log: l, roles: map[string]capsulev1.Role{method: capsulev1.Role_ROLE_OPERATOR}}
	e := a.begin(t.Context(), method)
	e.about("workload/web")
	e.letIn()
	e.goesOn()
	e.end(errRevoked)
	e.goesOn() // too late
	list := recorded(t, l)
	if len(list) != 2 || list[0].Code != "Running" || list[1].Code == "Running" || list[1].Object != "workload/web" {
		t.Errorf("recorded %+v", list)
	}
}

// In recovery an admin reads what was done before, and what is done and refused now
// stands beside it.
func TestAuditInRecovery(t *testing.T) {
	earlier := t.TempDir()
	before, err := audit.Open(earlier, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	before.Changed(audit.Record{Time: time.Now(), Operator: "anna", Method: "ObjectService/Apply", Code: "OK"})
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := audit.OpenBeside(earlier, t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, ctx := newBox(t, func(o *Options) { o.Audit = l }), limit(t)
	b.machine.reason = "the disk is broken"
	if _, err := capsulev1.NewObjectServiceClient(b.dial(t, capsulev1.Role_ROLE_READER)).Delete(ctx, &capsulev1.DeleteRequest{}); err == nil {
		t.Error("a reader deletes")
	}
	admin := capsulev1.NewCapsuleServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN))
	if _, err := admin.RestartService(ctx, &capsulev1.RestartServiceRequest{Service: "containerd"}); err != nil {
		t.Fatal(err)
	}
	stream, err := admin.Audit(ctx, &capsulev1.AuditRequest{Tail: -1})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ObjectService/Apply OK", "ObjectService/Delete PermissionDenied", "CapsuleService/RestartService OK"} {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if got := r.GetMethod() + " " + r.GetCode(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestWithoutAudit(t *testing.T) {
	b := newBox(t, nil)
	stream, err := capsulev1.NewCapsuleServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN)).Audit(limit(t), &capsulev1.AuditRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if err == nil || !strings.Contains(err.Error(), "keeps no audit log") {
		t.Errorf("without a log: %v", err)
	}
}
