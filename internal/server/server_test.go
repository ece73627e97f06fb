package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/config"
	"capsule/internal/contexts"
	"capsule/internal/identity"
	"capsule/internal/logs"
	"capsule/internal/secret"
	"capsule/internal/store"
	"capsule/internal/workload"
)

// box is a server on a real port with a real store; the machine around it is
// this test's process.
type box struct {
	ca      *identity.CA // of a box with a seed
	id      *identity.Identity
	address string
	store   *store.Store
	log     *lockedBuffer
	machine *testMachine
	logs    string
}

type lockedBuffer struct {
	mu    sync.Mutex
	b     bytes.Buffer
	wrote chan struct{} // holds one when anything was written
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.wrote <- struct{}{}:
	default:
	}
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type testMachine struct {
	reason string
	system string
	kernel string
	power  chan PowerState
	killed chan string
}

func (m *testMachine) Info() *capsulev1.InfoResponse {
	return &capsulev1.InfoResponse{Name: "capsule-test"}
}
func (m *testMachine) Mode() (capsulev1.Mode, string) {
	if m.reason != "" {
		return capsulev1.Mode_MODE_RECOVERY, m.reason
	}
	return capsulev1.Mode_MODE_NORMAL, ""
}
func (m *testMachine) Power(s PowerState, _ string) error { m.power <- s; return nil }
func (m *testMachine) RestartService(name string) error   { m.killed <- name; return nil }
func (m *testMachine) SystemLog() string                  { return m.system }
func (m *testMachine) KernelLog() string                  { return m.kernel }

// hostDriver runs commands as processes of the test, and copies to a folder.
type hostDriver struct {
	workload.Driver
	root string
	all  map[string]workload.RunningInstance
}

func (d hostDriver) Running(_ context.Context, name string) (workload.ID, workload.Driver, error) {
	if name == "down" {
		return workload.ID{}, nil, errdefs.ErrFailedPrecondition
	}
	return workload.ID{Name: name, Generation: 1}, d, nil
}

func (hostDriver) Wake(string) {}

func (d hostDriver) AllRunning(context.Context) (map[string]workload.RunningInstance, error) {
	return d.all, nil
}

func (hostDriver) Exec(ctx context.Context, _ workload.ID, e workload.Exec) (int, error) {
	if e.Command[0] == "panic" {
		panic("test")
	}
	cmd := exec.CommandContext(ctx, e.Command[0], e.Command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = e.Stdin, e.Stdout, e.Stderr
	if err := cmd.Start(); err != nil {
		return 127, nil
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-e.Signals:
				_ = cmd.Process.Signal(syscallSignal(s))
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func (d hostDriver) CopyTo(_ context.Context, _ workload.ID, path, _ string, tar io.Reader) (uint64, uint64, error) {
	f, err := os.Create(filepath.Join(d.root, path))
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	n, err := io.Copy(f, tar)
	return 1, uint64(n), err
}

func (d hostDriver) CopyFrom(_ context.Context, _ workload.ID, path string, tar io.Writer) error {
	f, err := os.Open(filepath.Join(d.root, path))
	if err != nil {
		return errdefs.ErrNotFound
	}
	defer f.Close()
	_, err = io.Copy(tar, f)
	return err
}

func newBox(t testing.TB, change func(*Options)) *box {
	t.Helper()
	dir := t.TempDir()
	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	seed, err := ca.SeedPEM()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "seed.pem"), seed, 0o600); err != nil {
		t.Fatal(err)
	}
	b := boxOf(t, dir, change)
	b.ca = ca
	return b
}

// boxOf has its identity, made of the seed if there is one, in dir.
func boxOf(t testing.TB, dir string, change func(*Options)) *box {
	t.Helper()
	id, err := identity.Load(filepath.Join(dir, "identity"), filepath.Join(dir, "seed.pem"))
	if err != nil {
		t.Fatal(err)
	}
	tlsConfig, err := id.ServerTLS("capsule-test")
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	b := &box{id: id, store: st, log: &lockedBuffer{wrote: make(chan struct{}, 1)}, logs: filepath.Join(dir, "logs"), machine: &testMachine{
		system: filepath.Join(dir, "system"), kernel: filepath.Join(dir, "kmsg"),
		power: make(chan PowerState, 8), killed: make(chan string, 8),
	}}
	secrets := secret.Open(st, filepath.Join(dir, "secret.keys"), noTPM)
	o := Options{
		TLS: tlsConfig, Identity: id, Store: st, Registries: config.NewRegistries(st, secrets), Runtime: hostDriver{root: dir}, Updates: &fetchingUpdates{},
		Secrets: secrets,
		Kinds:   []string{"Container"}, Machine: b.machine, Log: slog.New(slog.NewTextHandler(b.log, nil)),
		LogDir: func(name string) string { return filepath.Join(b.logs, name) },
	}
	if err := os.Mkdir(b.logs, 0o755); err != nil { // as the machine makes it
		t.Fatal(err)
	}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.address = listener.Addr().String()
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(listener) }()
	t.Cleanup(func() { s.Stop(); <-done; _ = st.Close() })
	return b
}

// dial connects as an operator of a role; ROLE_UNSPECIFIED has no certificate.
func (b *box) dial(t testing.TB, role capsulev1.Role) *grpc.ClientConn {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
	if role != capsulev1.Role_ROLE_UNSPECIFIED {
		pair, err := b.ca.IssueOperator("anna", role, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if config, err = (contexts.Context{CA: string(b.ca.CertPEM()), Certificate: string(pair.CertPEM), Key: string(pair.KeyPEM)}).TLS(); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := grpc.NewClient(b.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func limit(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// eachMethod walks the methods of the API as the descriptors have them.
func eachMethod(fn func(protoreflect.MethodDescriptor)) {
	protoregistry.GlobalFiles.RangeFilesByPackage("capsule.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			for j := range f.Services().Get(i).Methods().Len() {
				fn(f.Services().Get(i).Methods().Get(j))
			}
		}
		return true
	})
}

// call makes a call with an empty request and gives the code of its end.
func call(ctx context.Context, conn *grpc.ClientConn, m protoreflect.MethodDescriptor) codes.Code {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	path := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, path)
	if err != nil {
		return status.Code(err)
	}
	if err := stream.SendMsg(dynamicpb.NewMessage(m.Input())); err != nil && !errors.Is(err, io.EOF) {
		return status.Code(err)
	}
	_ = stream.CloseSend()
	err = stream.RecvMsg(dynamicpb.NewMessage(m.Output()))
	if errors.Is(err, io.EOF) {
		return codes.OK
	}
	return status.Code(err)
}

func TestRoles(t *testing.T) {
	b := newBox(t, nil)
	b.machine.kernel = "/dev/null"
	ctx := limit(t)
	for _, has := range []capsulev1.Role{
		capsulev1.Role_ROLE_UNSPECIFIED, capsulev1.Role_ROLE_READER, capsulev1.Role_ROLE_OPERATOR, capsulev1.Role_ROLE_ADMIN,
	} {
		conn := b.dial(t, has)
		eachMethod(func(m protoreflect.MethodDescriptor) {
			needs := proto.GetExtension(m.Options(), capsulev1.E_Role).(capsulev1.Role)
			got := call(ctx, conn, m)
			switch {
			case has == capsulev1.Role_ROLE_UNSPECIFIED:
				if got != codes.Unavailable {
					t.Errorf("%s without certificate: %v", m.FullName(), got)
				}
			case needs == capsulev1.Role_ROLE_NOBODY:
				if got != codes.InvalidArgument { // an empty request, seen by the method
					t.Errorf("%s, which asks for no role, called with %v: %v", m.FullName(), has, got)
				}
			case (has < needs) != (got == codes.PermissionDenied):
				t.Errorf("%s needs %v, called with %v: %v", m.FullName(), needs, has, got)
			case got == codes.Internal || got == codes.Unknown:
				t.Errorf("%s with an empty request: %v", m.FullName(), got)
			}
		})
	}
}

func TestMethodWithoutRole(t *testing.T) {
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, health.NewServer())
	if _, err := methodRoles(s.GetServiceInfo()); err == nil || !strings.Contains(err.Error(), "names no role") {
		t.Errorf("got %v", err)
	}
}

func TestRefusedHandshakeIsLoggedOnce(t *testing.T) {
	b := newBox(t, nil)
	conn, err := tls.Dial("tcp", b.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err == nil {
		_, err = io.ReadAll(conn)
		_ = conn.Close()
	}
	if err == nil {
		t.Error("was not refused")
	}
	select { // the client may see the alert first
	case <-b.log.wrote:
	case <-limit(t).Done():
	}
	if n := strings.Count(b.log.String(), "connection refused"); n != 1 || !strings.Contains(b.log.String(), "certificate") {
		t.Errorf("logged %d times:\n%s", n, b.log)
	}
}

func web(name string, ports ...*capsulev1.Port) *capsulev1.Object {
	return &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: "Container", Name: name},
		Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Spec: &capsulev1.WorkloadSpec{Image: "web:1", Ports: ports}}},
	}
}

func (b *box) apply(t *testing.T, objs ...*capsulev1.Object) (*capsulev1.ApplyResponse, error) {
	t.Helper()
	return capsulev1.NewObjectServiceClient(b.dial(t, capsulev1.Role_ROLE_OPERATOR)).Apply(limit(t), &capsulev1.ApplyRequest{Objects: objs})
}

func TestApply(t *testing.T) {
	b := newBox(t, nil)
	client := capsulev1.NewObjectServiceClient(b.dial(t, capsulev1.Role_ROLE_OPERATOR))
	ctx := limit(t)
	dry, err := client.Apply(ctx, &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{web("web")}, DryRun: true})
	if err != nil || dry.Results[0].Outcome != capsulev1.Outcome_OUTCOME_CREATED || !strings.HasPrefix(dry.Results[0].Diff, "+kind: Container\n") {
		t.Fatalf("dry run: %v, %v", dry, err)
	}
	if list, err := client.List(ctx, &capsulev1.ListRequest{}); err != nil || len(list.Objects) != 0 {
		t.Fatalf("the dry run left %v, %v", list, err)
	}
	for _, want := range []capsulev1.Outcome{capsulev1.Outcome_OUTCOME_CREATED, capsulev1.Outcome_OUTCOME_UNCHANGED} {
		got, err := b.apply(t, web("web"))
		if err != nil || got.Results[0].Outcome != want {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
	}
	changed := web("web")
	changed.GetWorkload().Spec.Image = "web:2"
	got, err := b.apply(t, changed)
	if err != nil || got.Results[0].Diff != "-image: web:1\n+image: web:2\n" || got.Results[0].Object.Meta.Generation != 2 {
		t.Errorf("got %v, %v", got, err)
	}
	if o, err := client.Get(ctx, &capsulev1.GetRequest{Name: "web"}); err != nil || o.Object.GetWorkload().Spec.Network != "bridge" {
		t.Errorf("stored without defaults: %v, %v", o, err)
	}
	if _, err := client.Delete(ctx, &capsulev1.DeleteRequest{Name: "web"}); err != nil {
		t.Error(err)
	}
	if _, err := client.Delete(ctx, &capsulev1.DeleteRequest{Name: "none"}); status.Code(err) != codes.NotFound {
		t.Errorf("got %v", err)
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	vm := web("vm")
	vm.Meta.Kind = "MicroVM"
	other := web("web")
	other.Meta.Kind = "MicroVM"
	bad := web("bad")
	bad.GetWorkload().Spec.Restart = "sometimes"
	port := func(n uint32) *capsulev1.Port { return &capsulev1.Port{HostPort: n, Port: 80} }
	for name, c := range map[string]struct {
		objs []*capsulev1.Object
		code codes.Code
		want string
	}{
		"bad beside good": {[]*capsulev1.Object{web("web"), bad}, codes.InvalidArgument, `Container "bad": unknown restart policy "sometimes"; want one of always, on-failure, never`},
		"no driver":       {[]*capsulev1.Object{web("web"), vm}, codes.FailedPrecondition, `MicroVM "vm": kind MicroVM is not available in this version of Capsule`},
		"twice":           {[]*capsulev1.Object{web("web"), web("web")}, codes.InvalidArgument, `Container "web" is declared twice`},
		"both kinds":      {[]*capsulev1.Object{web("web"), other}, codes.InvalidArgument, `the name "web" is used by a Container and a MicroVM; workloads of both kinds share their names`},
		"ports meet":      {[]*capsulev1.Object{web("a", port(8080)), web("b", port(8080))}, codes.AlreadyExists, `port 8080/tcp is already published by workload "a"`},
		"port is held":    {[]*capsulev1.Object{web("a", port(9090))}, codes.AlreadyExists, `port 9090/tcp is already published by workload "blog"`},
		"none":            {nil, codes.InvalidArgument, "apply takes 1 to 500 objects, not 0"},
		"empty object":    {[]*capsulev1.Object{{}}, codes.InvalidArgument, "kind is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, nil)
			if _, err := b.apply(t, web("blog", port(9090))); err != nil {
				t.Fatal(err)
			}
			_, err := b.apply(t, c.objs...)
			if s := status.Convert(err); s.Code() != c.code || !strings.Contains(s.Message(), c.want) {
				t.Errorf("got %v", err)
			}
			if objs, err := b.store.List(""); err != nil || len(objs) != 1 {
				t.Errorf("left %v, %v", objs, err)
			}
		})
	}
}

// A port that moves from one workload to another in one apply is no conflict.
func TestPortsMayMove(t *testing.T) {
	b := newBox(t, nil)
	port := &capsulev1.Port{HostPort: 8080, Port: 80}
	if _, err := b.apply(t, web("a", port), web("b")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.apply(t, web("b", port), web("a")); err != nil {
		t.Error(err)
	}
}

func TestIntent(t *testing.T) {
	b := newBox(t, nil)
	created, err := b.apply(t, web("web"))
	if err != nil {
		t.Fatal(err)
	}
	client := capsulev1.NewWorkloadServiceClient(b.dial(t, capsulev1.Role_ROLE_OPERATOR))
	ctx := limit(t)
	running := &capsulev1.WorkloadStatus{Phase: capsulev1.Phase_PHASE_RUNNING}
	if err := b.store.PutStatus(created.Results[0].Object.Meta.Uid, running); err != nil {
		t.Fatal(err)
	}
	generation := func(want uint64, stopped bool) {
		t.Helper()
		o, err := b.store.Get("", "web")
		if err != nil || o.Meta.Generation != want || o.GetWorkload().GetIntent().GetStopped() != stopped {
			t.Errorf("got %v, %v", o, err)
		}
	}
	start := func() (err error) { _, err = client.Start(ctx, &capsulev1.StartRequest{Name: "web"}); return }
	stop := func() (err error) { _, err = client.Stop(ctx, &capsulev1.StopRequest{Name: "web"}); return }
	restart := func() (err error) { _, err = client.Restart(ctx, &capsulev1.RestartRequest{Name: "web"}); return }
	for i, step := range []struct {
		do         func() error
		generation uint64
		stopped    bool
	}{
		{start, 1, false}, // runs already
		{restart, 2, false},
		{stop, 3, true},
		{stop, 3, true},
		{start, 4, false},
		{stop, 5, true},
		{restart, 6, false},
	} {
		if err := step.do(); err != nil {
			t.Errorf("step %d: %v", i, err)
		}
		generation(step.generation, step.stopped)
	}
	if err := b.store.PutStatus(created.Results[0].Object.Meta.Uid, &capsulev1.WorkloadStatus{Phase: capsulev1.Phase_PHASE_BACK_OFF}); err != nil {
		t.Fatal(err)
	}
	if err := start(); err != nil {
		t.Error(err)
	}
	generation(7, false) // skips the back-off
	if _, err := client.Start(ctx, &capsulev1.StartRequest{Name: "none"}); status.Code(err) != codes.NotFound {
		t.Errorf("got %v", err)
	}
}

func TestRecovery(t *testing.T) {
	b := newBox(t, nil)
	if _, err := b.apply(t, web("web")); err != nil {
		t.Fatal(err)
	}
	b.machine.reason = "PERM can't be read"
	if _, err := b.apply(t, web("web")); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "PERM can't be read") {
		t.Errorf("got %v", err)
	}
	conn, ctx := b.dial(t, capsulev1.Role_ROLE_ADMIN), limit(t)
	list, err := capsulev1.NewObjectServiceClient(conn).List(ctx, &capsulev1.ListRequest{})
	if err != nil || len(list.Objects) != 1 {
		t.Errorf("got %v, %v", list, err)
	}
	machine := capsulev1.NewCapsuleServiceClient(conn)
	info, err := machine.Info(ctx, &capsulev1.InfoRequest{})
	if err != nil || info.Mode != capsulev1.Mode_MODE_RECOVERY || info.ModeReason != "PERM can't be read" || info.Workloads != 1 {
		t.Errorf("got %v, %v", info, err)
	}
	if _, err := machine.Reboot(ctx, &capsulev1.RebootRequest{}); err != nil || <-b.machine.power != Reboot {
		t.Errorf("reboot: %v", err)
	}
	if _, err := machine.Shutdown(ctx, &capsulev1.ShutdownRequest{}); err != nil || <-b.machine.power != PowerOff {
		t.Errorf("shutdown: %v", err)
	}
}

func TestNoStoreAtAll(t *testing.T) {
	b := newBox(t, func(o *Options) { o.Store, o.Registries, o.Runtime = nil, nil, nil })
	b.machine.reason, b.machine.kernel = "gone", "/dev/null"
	conn, ctx := b.dial(t, capsulev1.Role_ROLE_ADMIN), limit(t)
	eachMethod(func(m protoreflect.MethodDescriptor) {
		if got := call(ctx, conn, m); got == codes.Internal || got == codes.Unavailable {
			t.Errorf("%s: %v", m.FullName(), got)
		}
	})
}

func TestWatch(t *testing.T) {
	b := newBox(t, nil)
	if _, err := b.apply(t, web("a"), web("b")); err != nil {
		t.Fatal(err)
	}
	watch, err := capsulev1.NewObjectServiceClient(b.dial(t, capsulev1.Role_ROLE_READER)).Watch(limit(t), &capsulev1.WatchRequest{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	next := func() *capsulev1.WatchResponse {
		t.Helper()
		r, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	a := next().Object
	if a.GetMeta().GetName() != "a" || !next().Synced {
		t.Errorf("got %v", a)
	}
	if err := b.store.Delete("", "a"); err != nil {
		t.Fatal(err)
	}
	if r := next(); r.Object.GetMeta().GetDeletedAt() == nil {
		t.Errorf("got %v", r)
	}
	if err := b.store.Remove(a.Meta.Uid); err != nil {
		t.Fatal(err)
	}
	if r := next(); !r.Deleted {
		t.Errorf("got %v", r)
	}
}

// Following goes through restarts, with their marks, and ends with the workload.
func TestLogsFollow(t *testing.T) {
	b := newBox(t, nil)
	created, err := b.apply(t, web("web"))
	if err != nil {
		t.Fatal(err)
	}
	// A volume of the same name is another thing.
	if _, err := b.store.Apply(t.Context(), []*capsulev1.Object{disk("web", 1<<30)}, false, nil); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(b.logs, "web")
	write := func(text string) {
		w, err := logs.NewWriter(dir, logs.DefaultLimits)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(logs.Stdout, []byte(text))
		w.Close()
	}
	write("one\n")
	stream, err := capsulev1.NewWorkloadServiceClient(b.dial(t, capsulev1.Role_ROLE_READER)).Logs(limit(t), &capsulev1.LogsRequest{Name: "web", Follow: true, Tail: -1})
	if err != nil {
		t.Fatal(err)
	}
	want := func(stdout capsulev1.Stream, text string) {
		t.Helper()
		r, err := stream.Recv()
		if err != nil || r.Stream != stdout || strings.TrimSpace(string(r.Data)) != text {
			t.Fatalf("got %v, %v, want %q", r, err, text)
		}
	}
	want(capsulev1.Stream_STREAM_STDOUT, "one")
	for range 2 {
		if err := logs.Mark(dir, "started again"); err != nil {
			t.Fatal(err)
		}
		write("again\n")
		want(capsulev1.Stream_STREAM_EVENT, "started again")
		want(capsulev1.Stream_STREAM_STDOUT, "again")
	}
	if err := b.store.Remove(created.Results[0].Object.Meta.Uid); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the delete: %v, %v", r, err)
	}
}

// The serial console of a microVM is a log of its own, read and followed alike.
func TestLogsSerial(t *testing.T) {
	b := newBox(t, func(o *Options) { o.Kinds = []string{"Container", "MicroVM"} })
	vm := web("vm")
	vm.Meta.Kind = "MicroVM"
	vm.GetWorkload().Spec.Ports = nil
	if _, err := b.apply(t, vm, web("web")); err != nil {
		t.Fatal(err)
	}
	client := capsulev1.NewWorkloadServiceClient(b.dial(t, capsulev1.Role_ROLE_READER))
	read := func(req *capsulev1.LogsRequest) (text string, err error) {
		stream, err := client.Logs(limit(t), req)
		for err == nil {
			var r *capsulev1.LogsResponse
			r, err = stream.Recv()
			text += string(r.GetData())
		}
		return text, err
	}
	if text, err := read(&capsulev1.LogsRequest{Name: "web", Serial: true, Tail: -1}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("of a container: %q, %v", text, err)
	}
	if text, err := read(&capsulev1.LogsRequest{Name: "vm", Serial: true, Tail: -1}); !errors.Is(err, io.EOF) {
		t.Errorf("before its first start: %q, %v", text, err)
	}
	follower, err := client.Logs(limit(t), &capsulev1.LogsRequest{Name: "vm", Serial: true, Tail: -1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(b.logs, "vm")
	for _, log := range []struct{ dir, text string }{{dir, "printed\n"}, {logs.Serial(dir), "kernel\nagent\n"}} {
		w, err := logs.NewWriter(log.dir, logs.DefaultLimits)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(logs.Stdout, []byte(log.text))
		w.Close()
	}
	if r, err := follower.Recv(); err != nil || string(r.GetData()) != "kernel\n" {
		t.Errorf("followed: %v, %v", r, err)
	}
	for want, req := range map[string]*capsulev1.LogsRequest{
		"printed\n":       {Name: "vm", Tail: -1},
		"kernel\nagent\n": {Name: "vm", Serial: true, Tail: -1},
		"agent\n":         {Name: "vm", Serial: true, Tail: 1},
	} {
		if text, err := read(req); text != want || !errors.Is(err, io.EOF) {
			t.Errorf("%v: %q, %v", req, text, err)
		}
	}
	if err := logs.Remove(dir); err != nil { // as with the workload
		t.Fatal(err)
	}
	if text, err := read(&capsulev1.LogsRequest{Name: "vm", Serial: true, Tail: -1}); text != "" || !errors.Is(err, io.EOF) {
		t.Errorf("removed: %q, %v", text, err)
	}
}

func TestLogsOfAWorkloadThatNeverRan(t *testing.T) {
	b := newBox(t, nil)
	if _, err := b.apply(t, web("web")); err != nil {
		t.Fatal(err)
	}
	client := capsulev1.NewWorkloadServiceClient(b.dial(t, capsulev1.Role_ROLE_READER))
	ctx, cancel := context.WithCancel(limit(t))
	for _, c := range []struct {
		name string
		want codes.Code
	}{{"web", codes.OK}, {"none", codes.NotFound}} {
		stream, err := client.Logs(ctx, &capsulev1.LogsRequest{Name: c.name, Tail: -1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); !(c.want == codes.OK && errors.Is(err, io.EOF)) && status.Code(err) != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	stream, err := client.Logs(ctx, &capsulev1.LogsRequest{Name: "web", Tail: -1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	w, err := logs.NewWriter(filepath.Join(b.logs, "web"), logs.DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(logs.Stdout, []byte("first\n"))
	w.Close()
	if r, err := stream.Recv(); err != nil || string(r.Data) != "first\n" {
		t.Errorf("got %v, %v", r, err)
	}
	cancel()
}

func TestExec(t *testing.T) {
	b := newBox(t, nil)
	if _, err := b.apply(t, web("web"), web("down")); err != nil {
		t.Fatal(err)
	}
	client := capsulev1.NewWorkloadServiceClient(b.dial(t, capsulev1.Role_ROLE_OPERATOR))
	for name, c := range map[string]struct {
		start  *capsulev1.ExecStart
		stdin  string
		code   int32
		stdout string
		stderr string
		fails  codes.Code
	}{
		"both outputs": {start: &capsulev1.ExecStart{Name: "web", Command: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}}, code: 3, stdout: "out\n", stderr: "err\n"},
		"stdin":        {start: &capsulev1.ExecStart{Name: "web", Command: []string{"cat"}, Stdin: true}, stdin: strings.Repeat("x", 200000), stdout: strings.Repeat("x", 200000)},
		"no stdin":     {start: &capsulev1.ExecStart{Name: "web", Command: []string{"cat"}}},
		"no command":   {start: &capsulev1.ExecStart{Name: "web"}, fails: codes.InvalidArgument},
		"no workload":  {start: &capsulev1.ExecStart{Name: "none", Command: []string{"true"}}, fails: codes.NotFound},
		"not running":  {start: &capsulev1.ExecStart{Name: "down", Command: []string{"true"}}, fails: codes.FailedPrecondition},
		"panic":        {start: &capsulev1.ExecStart{Name: "web", Command: []string{"panic"}}, fails: codes.Internal},
		"no start":     {fails: codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			stream, err := client.Exec(limit(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Start{Start: c.start}}); err != nil {
				t.Fatal(err)
			}
			if c.stdin != "" {
				for rest := c.stdin; rest != ""; rest = rest[min(len(rest), 10000):] {
					_ = stream.Send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Stdin{Stdin: []byte(rest[:min(len(rest), 10000)])}})
				}
				_ = stream.Send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_StdinClosed{StdinClosed: true}})
			}
			var stdout, stderr bytes.Buffer
			for {
				r, err := stream.Recv()
				if err != nil {
					if status.Code(err) != c.fails {
						t.Errorf("got %v", err)
					}
					return
				}
				stdout.Write(r.GetStdout())
				stderr.Write(r.GetStderr())
				if exit := r.GetExit(); exit != nil {
					if exit.Code != c.code || stdout.String() != c.stdout || stderr.String() != c.stderr {
						t.Errorf("code %d, %d bytes of stdout, stderr %q", exit.Code, stdout.Len(), stderr.String())
					}
					return
				}
			}
		})
	}
}

// A client that is gone takes its command with it.
func TestExecEndsWithItsClient(t *testing.T) {
	b := newBox(t, nil)
	if _, err := b.apply(t, web("web")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(limit(t))
	stream, err := capsulev1.NewWorkloadServiceClient(b.dial(t, capsulev1.Role_ROLE_OPERATOR)).Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	fifo := filepath.Join(dir, "alive")
	start := &capsulev1.ExecStart{Name: "web", Command: []string{"sh", "-c", "exec 3>" + fifo + "; echo up; exec sleep 1000"}}
	if err := mkfifo(fifo); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { // reads end of file once the command is gone
		_, err := os.ReadFile(fifo)
		ended <- err
	}()
	if err := stream.Send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Start{Start: start}}); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || string(r.GetStdout()) != "up\n" {
		t.Fatalf("got %v, %v", r, err)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("the command outlives its client")
	}
}

func TestCopy(t *testing.T) {
	b := newBox(t, nil)
	if _, err := b.apply(t, web("web")); err != nil {
		t.Fatal(err)
	}
	client, ctx := capsulev1.NewWorkloadServiceClient(b.dial(t, capsulev1.Role_ROLE_OPERATOR)), limit(t)
	to, err := client.CopyTo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("0123456789"), 30000)
	_ = to.Send(&capsulev1.CopyToRequest{Part: &capsulev1.CopyToRequest_Target{Target: &capsulev1.CopyTarget{Name: "web", Path: "/file"}}})
	for rest := content; len(rest) > 0; rest = rest[100000:] {
		_ = to.Send(&capsulev1.CopyToRequest{Part: &capsulev1.CopyToRequest_Data{Data: rest[:100000]}})
	}
	if r, err := to.CloseAndRecv(); err != nil || r.Bytes != uint64(len(content)) {
		t.Fatalf("got %v, %v", r, err)
	}
	from, err := client.CopyFrom(ctx, &capsulev1.CopyFromRequest{Name: "web", Path: "/file"})
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	for {
		r, err := from.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got.Write(r.Data)
	}
	if !bytes.Equal(got.Bytes(), content) {
		t.Errorf("%d bytes came back", got.Len())
	}
}

func TestRegistries(t *testing.T) {
	b := newBox(t, nil)
	client, ctx := capsulev1.NewImageServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN)), limit(t)
	if _, err := client.SetRegistry(ctx, &capsulev1.SetRegistryRequest{Registry: &capsulev1.Registry{Host: "r.lan:5000", Username: "u"}, Password: "secret"}); err != nil {
		t.Fatal(err)
	}
	list, err := client.ListRegistries(ctx, &capsulev1.ListRegistriesRequest{})
	if err != nil || len(list.Registries) != 1 || strings.Contains(list.String(), "secret") {
		t.Errorf("got %v, %v", list, err)
	}
	if _, err := client.DeleteRegistry(ctx, &capsulev1.DeleteRegistryRequest{Host: "r.lan:5000"}); err != nil {
		t.Error(err)
	}
	if strings.Contains(b.log.String(), "secret") {
		t.Error("the password is in the log")
	}
}

func TestRestartService(t *testing.T) {
	b := newBox(t, nil)
	client := capsulev1.NewCapsuleServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN))
	if _, err := client.RestartService(limit(t), &capsulev1.RestartServiceRequest{Service: "containerd"}); err != nil || <-b.machine.killed != "containerd" {
		t.Error(err)
	}
	if _, err := client.RestartService(limit(t), &capsulev1.RestartServiceRequest{Service: "kernel"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("got %v", err)
	}
}
