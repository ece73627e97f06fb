package server

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/audit"
	"capsule/internal/claim"
)

// collect gives the files of an archive, and the steps that were told.
func collect(t *testing.T, b *box) (files map[string]string, steps []string) {
	t.Helper()
	stream, err := capsulev1.NewSupportServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN)).Collect(limit(t), &capsulev1.CollectRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var data []byte
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, m.GetData()...)
		if m.GetStep() != "" {
			steps = append(steps, m.GetStep())
		}
	}
	zip, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for r := tar.NewReader(zip); ; {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, steps
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[path.Base(head.Name)] = string(content)
	}
}

// planted are secrets, each in all places where it can stand.
type planted struct {
	list []string
}

// word is a new one.
func (p *planted) word(kind string) string {
	w := fmt.Sprintf("planted-%s-%d", kind, len(p.list))
	p.list = append(p.list, w)
	return w
}

// Wherever a secret can stand, it is in no file of the archive; what is no secret is.
func TestSupportHoldsNoSecret(t *testing.T) {
	b, l, _ := auditedBox(t)
	ctx, conn := limit(t), b.dial(t, capsulev1.Role_ROLE_ADMIN)
	var p planted
	value, lined, old := p.word("value"), p.word("line"), p.word("registry")
	key := "-----BEGIN PRIVATE KEY-----\nMIGHAgEA" + p.word("key") + "\n" + lined + "\n-----END PRIVATE KEY-----\n"

	web := testContainer("web")
	spec := web.GetWorkload().Spec
	spec.Env = map[string]string{
		"DB_PASSWORD": p.word("env"), "DATABASE": "postgres://app:" + p.word("url") + "@db/app", "INNOCENT": p.word("unnamed"), "PORT": "8080",
	}
	spec.SecretEnv = map[string]string{"PASSWORD": "db/password"}
	spec.Files = []*capsulev1.File{{Path: "/etc/app.conf", Content: proto.String("listen = 80\npassword = " + p.word("file") + "\n")}, {Path: "/etc/key", Secret: "db/key"}}
	spec.Command = []string{"/bin/app", "--token", p.word("command")}
	spec.Args = []string{"--api-key=" + p.word("arg"), "-p" + p.word("short")}
	spec.Health = &capsulev1.Health{Exec: []string{"/check", "--password", p.word("check")}}
	secret := &capsulev1.Object{Meta: &capsulev1.Meta{Kind: "Secret", Name: "db"}, Kind: &capsulev1.Object_Secret{Secret: &capsulev1.Secret{
		Spec: &capsulev1.SecretSpec{Data: map[string]string{"password": value, "key": key}},
	}}}
	if _, err := capsulev1.NewObjectServiceClient(conn).Apply(ctx, &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{secret, web}}); err != nil {
		t.Fatal(err)
	}
	if _, err := capsulev1.NewImageServiceClient(conn).SetRegistry(ctx, &capsulev1.SetRegistryRequest{
		Registry: &capsulev1.Registry{Host: "registry.example", Username: "puller"}, Password: old,
	}); err != nil {
		t.Fatal(err)
	}
	token, err := capsulev1.NewTokenServiceClient(conn).Create(ctx, &capsulev1.TokenServiceCreateRequest{Name: "prometheus"})
	if err != nil {
		t.Fatal(err)
	}
	code := string(claim.NewCode())
	p.list = append(p.list, token.GetSecret(), code)

	// What programs may print, in the logs, in an event and in the audit log.
	basic := base64.StdEncoding.EncodeToString([]byte("puller:" + old))
	p.list = append(p.list, basic, base64.StdEncoding.EncodeToString([]byte(value)))
	sentences := []string{
		"pull from https://puller:" + p.word("userinfo") + "@registry.example/v2/ failed",
		"GET https://auth.example/token?service=x&access_token=" + p.word("query"),
		"Authorization: Basic " + basic, "sent Bearer " + p.word("bearer"), "the value is " + value + " and " + old,
		"encoded " + base64.StdEncoding.EncodeToString([]byte(value)), "claim it with " + code, "token " + token.GetSecret(), "a line of it: " + lined,
		`password="` + p.word("quoted") + ` with spaces"`, "harmless words",
	}
	if err := os.MkdirAll(b.machine.system, 0o755); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(sentences, "\n") + "\n" + key
	for _, name := range []string{"capsuled.log", "containerd.log"} {
		if err := os.WriteFile(filepath.Join(b.machine.system, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(b.machine.kernel, []byte("6,1,0,-;kernel: "+strings.Join(sentences, " / ")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.store.NoteChange(web, "failed", strings.Join(sentences, " / ")); err != nil {
		t.Fatal(err)
	}
	l.Changed(audit.Record{Time: time.Now(), Operator: "anna", Method: "WorkloadService/Exec", Code: "Internal", Message: sentences[0] + sentences[4]})

	files, steps := collect(t, b)
	for name, content := range files {
		for _, word := range p.list {
			if strings.Contains(content, word) {
				t.Errorf("%s holds %q: %s", name, word, content)
			}
		}
		if strings.Contains(content, "PRIVATE KEY") {
			t.Errorf("%s holds a private key", name)
		}
	}
	for name, want := range map[string]string{
		"README.txt": "look through it", "info.json": "capsule-test", "objects.json": `"PORT":"8080"`, "events.json": "harmless words",
		"audit.json": "ObjectService/Apply", "capsuled.log": "harmless words", "containerd.log": "registry.example/v2/", "kernel.log": "harmless words", "usage.json": "uptime",
	} {
		if !strings.Contains(strings.ReplaceAll(files[name], `": "`, `":"`), want) {
			t.Errorf("%s does not hold %q: %s %s", name, want, files[name], files[name+".error"])
		}
	}
	for _, want := range []string{"DB_PASSWORD", "db/password", "/etc/app.conf", "--api-key=", "/bin/app", "db/key"} {
		if !strings.Contains(files["objects.json"], want) {
			t.Errorf("objects.json does not hold %q: %s", want, files["objects.json"])
		}
	}
	if len(steps) < 8 {
		t.Errorf("steps %q", steps)
	}
}

// In recovery mode, without a state, and where nothing can be read, there still is an
// archive, which tells what it lacks.
func TestSupportOfLittle(t *testing.T) {
	b := newBox(t, func(o *Options) { o.Store, o.Registries, o.Runtime, o.Secrets, o.Audit = nil, nil, nil, nil, nil })
	b.machine.reason = "gone"
	files, _ := collect(t, b)
	for name, want := range map[string]string{
		"info.json": "gone", "objects.json.error": "can't be read", "events.json.error": "can't be read", "audit.json.error": "keeps no audit log", "kernel.log.error": "no such file",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s does not hold %q: %q", name, want, files[name])
		}
	}
}

// Each of both leaves one record of what it was about.
func TestAuditOfSupport(t *testing.T) {
	b, l, _ := auditedBox(t)
	ctx, client := limit(t), capsulev1.NewSupportServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN))
	collect(t, b)
	stream, err := client.Capture(ctx, &capsulev1.CaptureRequest{Link: "nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.NotFound {
		t.Errorf("a link that is not there: %v", err)
	}
	var got []string
	for _, r := range recorded(t, l) {
		got = append(got, r.Method+" "+r.Object+" "+r.Code)
	}
	if want := "SupportService/Collect  OK,SupportService/Capture link/nowhere NotFound"; strings.Join(got, ",") != want {
		t.Errorf("recorded %q, want %q", got, want)
	}
}

func TestCapture(t *testing.T) {
	b := newBox(t, func(o *Options) {
		o.WorkloadLink = func(name string) (string, error) { return "lo", nil }
	})
	// Not by a call: its connection would be one more that may say something.
	if _, err := b.store.Apply(t.Context(), []*capsulev1.Object{testContainer("web")}, false, nil); err != nil {
		t.Fatal(err)
	}
	ctx, client := limit(t), capsulev1.NewSupportServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN))
	for name, c := range map[string]struct {
		req  *capsulev1.CaptureRequest
		code codes.Code
		want string
	}{
		"both":        {&capsulev1.CaptureRequest{Link: "lo", Workload: "web"}, codes.InvalidArgument, "a workload has its own link"},
		"no workload": {&capsulev1.CaptureRequest{Workload: "none"}, codes.NotFound, "none"},
		"filter":      {&capsulev1.CaptureRequest{Link: "lo", Filter: "tpc"}, codes.InvalidArgument, `unexpected "tpc"`},
	} {
		stream, err := client.Capture(ctx, c.req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	// The call's own connection is on the loopback, and is not among what is recorded.
	to, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	filter := "tcp port " + port(b.address) + " or udp port " + port(to.LocalAddr().String())
	stream, err := client.Capture(ctx, &capsulev1.CaptureRequest{Workload: "web", Filter: filter, Packets: 3})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetStart().GetLink() != "lo" {
		t.Fatalf("started with %v, %v", m, err)
	}
	for range 4 {
		if _, err := to.WriteTo([]byte("marked-datagram"), to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	var data []byte
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if end := m.GetEnd(); end != nil {
			if end.GetPackets() != 3 || end.GetReason() != "packets" || end.GetBytes() != uint64(len(data)) {
				t.Errorf("ended with %v after %d bytes", end, len(data))
			}
			break
		}
		data = append(data, m.GetData()...)
	}
	if n := bytes.Count(data, []byte("marked-datagram")); n != 3 {
		t.Errorf("%d of the datagrams are recorded", n)
	}
}

func port(address string) string {
	_, p, _ := net.SplitHostPort(address)
	return p
}

// No more are made at once than there are places.
func TestPlaces(t *testing.T) {
	places := make(chan struct{}, 1)
	done, err := place(places, "another capture")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := place(places, "another capture"); err == nil || !strings.Contains(err.Error(), "another capture is under way") {
		t.Errorf("a second one: %v", err)
	}
	done()
	if _, err := place(places, "another capture"); err != nil {
		t.Errorf("after it ended: %v", err)
	}
}
