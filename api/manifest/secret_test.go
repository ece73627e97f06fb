package manifest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	capsulev1 "capsule/api/capsule/v1"
)

const filesManifest = `kind: Container
name: web
image: web:1
files:
  - path: /etc/app.conf
    content: |
      a = 1

      b = "2"
    mode: "0444"
  - path: /etc/empty
    content: ""
  - path: /etc/key
    secret: db/tls.key
    owner: "app:extra"
secretEnv:
  PASSWORD: db/password
onSecretChange: restart
`

func TestFilesManifest(t *testing.T) {
	objs, err := Decode("web.yaml", strings.NewReader(filesManifest))
	if err != nil {
		t.Fatal(err)
	}
	want := &capsulev1.WorkloadSpec{
		Image: "web:1",
		Files: []*capsulev1.File{
			{Path: "/etc/app.conf", Content: new("a = 1\n\nb = \"2\"\n"), Mode: "0444"},
			{Path: "/etc/empty", Content: new("")},
			{Path: "/etc/key", Secret: "db/tls.key", Owner: "app:extra"},
		},
		SecretEnv: map[string]string{"PASSWORD": "db/password"}, OnSecretChange: "restart",
	}
	got := objs[0].GetWorkload().GetSpec()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	again, err := Encode(objs[0])
	if err != nil || !strings.Contains(string(again), "content: |\n      a = 1\n\n      b = \"2\"\n    mode") {
		t.Errorf("it is written as %s, %v", again, err)
	}
	roundTrip(t, objs[0])
	Default(objs[0])
	if got.Files[1].Mode != "0444" || got.Files[2].Mode != "0400" || Mode(got.Files[2]) != 0o400 {
		t.Errorf("defaults are %v", got.Files)
	}
}

// roundTrip writes an object and reads it.
func roundTrip(t *testing.T, o *capsulev1.Object) {
	t.Helper()
	text, err := Encode(o)
	if err != nil {
		t.Fatal(err)
	}
	objs, err := Decode("written.yaml", strings.NewReader(string(text)))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if diff := cmp.Diff(o, objs[0], protocmp.Transform()); diff != "" {
		t.Errorf("%s of\n%s", diff, text)
	}
}

func fileOf(content string) *capsulev1.Object {
	return &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: KindContainer, Name: "web"},
		Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Spec: &capsulev1.WorkloadSpec{
			Image: "web:1", Files: []*capsulev1.File{{Path: "/f", Content: &content}, {Path: "/g", Content: new("x")}},
		}}},
	}
}

// Whatever a file holds, it is the same when it was written and read.
func TestBlocks(t *testing.T) {
	for text, want := range map[string]bool{
		"a\nb\n": true, "a\nb": true, "a\nb\n\n\n": true, "a:\n  - b # c\n\td\n": true, "a\n\n\nb\n": true, "---\n...\n%x\n": true,
		"": false, "a": false, "a\n": false, "\n\n": false, " a\nb\n": false, "\na\nb": false, "a \nb\n": false, "a\n  \nb": false,
		"a\r\nb\r\n": false, "a\x00\nb": false, "a\u0085b\nc": false, "a\u2028b\nc": false, "\ufeffa\nb": false,
	} {
		if got := isBlock(text); got != want {
			t.Errorf("%q is a block: %v", text, got)
		}
		roundTrip(t, fileOf(text))
	}
}

func FuzzBlocks(f *testing.F) {
	for _, s := range []string{"a\nb\n", "a\n\n b", "- a\n-", "?\n:\n", "|\n>", "#\n\ta\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !isBlock(s) || len(s) > 4096 || strings.ContainsRune(s, '\uFFFD') {
			return
		}
		roundTrip(t, fileOf(s))
	})
}

func TestSecretManifest(t *testing.T) {
	objs, err := Decode("db.yaml", strings.NewReader("kind: Secret\nname: db\ndata:\n  a: 010\n  yes: no\n  tls.key: |\n    x\n    y\nbinaryData:\n  b: |\n    AAEC\n    AwQ=\n  empty: \"\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := &capsulev1.SecretSpec{
		Data:       map[string]string{"a": "010", "yes": "no", "tls.key": "x\ny\n"},
		BinaryData: map[string][]byte{"b": {0, 1, 2, 3, 4}, "empty": {}},
	}
	if diff := cmp.Diff(want, objs[0].GetSecret().GetSpec(), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	roundTrip(t, objs[0])
	if _, err := Decode("db.yaml", strings.NewReader("kind: Secret\nname: db\nsealed: {}\n")); err == nil || !strings.Contains(err.Error(), `unknown field "sealed"`) {
		t.Errorf("what a capsule keeps can be declared: %v", err)
	}
}

func TestFilesRules(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*capsulev1.WorkloadSpec)
		want   string
	}{
		"twice":        {files("/a", "/a"), `files[1] is at "/a", and files[0] at "/a"`},
		"below a file": {files("/a", "/a/b"), `files[1] is at "/a/b", and files[0] at "/a"`},
		"above a file": {files("/a/b", "/a"), `files[1] is at "/a", and files[0] at "/a/b"`},
		"a folder":     {files("/a/"), `path "/a/" is that of a folder`},
		"root":         {files("/"), `path "/" is that of a folder`},
		"the kernel's": {files("/proc/x"), "/proc is the kernel's"},
		"relative":     {files("a"), `path "a" must be absolute`},
		"a mount's": {func(s *capsulev1.WorkloadSpec) {
			files("/data")(s)
			s.Mounts = []*capsulev1.Mount{{Volume: "v", Path: "/data"}}
		}, `files[0] is at "/data", and the folder of mounts[0] at "/data"`},
		"above a mount": {func(s *capsulev1.WorkloadSpec) {
			files("/a")(s)
			s.Mounts = []*capsulev1.Mount{{Volume: "v", Path: "/a/b"}}
		}, `files[0] is at "/a", and the folder of mounts[0] at "/a/b"`},
		"in a mount": {func(s *capsulev1.WorkloadSpec) {
			files("/data/f")(s)
			s.Mounts = []*capsulev1.Mount{{Volume: "v", Path: "/data"}}
		}, ""},
		"both": {func(s *capsulev1.WorkloadSpec) { files("/a")(s); s.Files[0].Secret = "a/b" }, "has content and secret"},
		"large": {func(s *capsulev1.WorkloadSpec) {
			files("/a")(s)
			s.Files[0].Content = new(strings.Repeat("x", fileBytesMax+1))
		}, "content is longer than 64KiB"},
		"large together": {func(s *capsulev1.WorkloadSpec) {
			files("/a", "/b", "/c", "/d")(s)
			for _, f := range s.Files {
				f.Content = new(strings.Repeat("x", 50<<10))
			}
		}, "at most 192KiB can be shown"},
		"owner":      {func(s *capsulev1.WorkloadSpec) { files("/a")(s); s.Files[0].Owner = "a b" }, `files[0].owner "a b"`},
		"mode":       {func(s *capsulev1.WorkloadSpec) { files("/a")(s); s.Files[0].Mode = "0999" }, `files[0].mode: "0999" are no permissions`},
		"short mode": {func(s *capsulev1.WorkloadSpec) { files("/a")(s); s.Files[0].Mode = "440" }, ""},
		"reference":  {func(s *capsulev1.WorkloadSpec) { s.SecretEnv = map[string]string{"A": "Db/x"} }, `secretEnv.A: secret name "Db" must be`},
		"no key":     {func(s *capsulev1.WorkloadSpec) { s.SecretEnv = map[string]string{"A": "db/"} }, `secretEnv.A: "db/" names no value of a secret`},
		"variable":   {func(s *capsulev1.WorkloadSpec) { s.SecretEnv = map[string]string{"A=B": "db/x"} }, `secretEnv: name "A=B" must have no "="`},
		"many variables": {func(s *capsulev1.WorkloadSpec) {
			s.Env, s.SecretEnv = map[string]string{}, map[string]string{"A": "db/x"}
			for i := range envMax {
				s.Env["B"+strings.Repeat("x", i%200)+string(rune('a'+i/200))] = ""
			}
		}, "secretEnv has more than 0 entries"},
		"policy": {func(s *capsulev1.WorkloadSpec) { s.OnSecretChange, s.Restart = "restart", "never" }, `onSecretChange "restart": restart is "never"`},
	} {
		t.Run(name, func(t *testing.T) {
			o := fileOf("")
			spec := o.GetWorkload().GetSpec()
			spec.Files = nil
			tc.change(spec)
			err := Validate(o)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// files are some with content.
func files(paths ...string) func(*capsulev1.WorkloadSpec) {
	return func(s *capsulev1.WorkloadSpec) {
		for _, p := range paths {
			s.Files = append(s.Files, &capsulev1.File{Path: p, Content: new("x")})
		}
	}
}
