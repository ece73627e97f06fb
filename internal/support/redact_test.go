package support

import (
	"encoding/base64"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	v1 "capsule/api/capsule/v1"
)

const pem = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIA8sZZZZZZZZZZZZZZZZZZ\nAwEHoUQDQgAE\n-----END EC PRIVATE KEY-----"

func TestText(t *testing.T) {
	r := NewRedactor([]string{"correct horse", "two\nlines-of-it\n", "ab", "quo\"ted/&"})
	for in, want := range map[string]string{
		"nothing to see, key 3f2a:91c0 of ann":                       "nothing to see, key 3f2a:91c0 of ann",
		"say correct horse twice: correct horse":                     "say (removed) twice: (removed)",
		"Y29ycmVjdCBob3JzZQ== and correct+horse and correct%20horse": "(removed) and (removed) and (removed)",
		"only lines-of-it here":                                      "only (removed) here",
		`{"x":"quo\"ted/\u0026"}`:                                    `{"x":"(removed)"}`,
		"a drab word":                                                "a drab word",
		"pull https://ann:pw@registry.lan/v2/: 401":                  "pull https://(removed)@registry.lan/v2/: 401",
		"clone https://sometoken@git.lan/a.git":                      "clone https://(removed)@git.lan/a.git",
		"GET https://a.lan/x@y":                                      "GET https://a.lan/x@y",
		"GET /v2/token?service=a&sig=Zm9v&x=1":                       "GET /v2/token?service=a&sig=(removed)&x=1",
		"Authorization: Bearer abcdefghijkl":                         "Authorization: (removed) (removed)",
		"password=hunter2 user=ann":                                  "password=(removed) user=ann",
		`level=info DB_PASSWORD="a b c" x=1`:                         `level=info DB_PASSWORD=(removed) x=1`,
		`msg="set password=\"a b\" now"`:                             `msg="set password=(removed) now"`,
		`{"apiKey": "x1", "n": 1}`:                                   `{"apiKey": (removed), "n": 1}`,
		"--token=abc --secret: 'x y' z":                              "--token=(removed) --secret: (removed) z",
		"capsule_" + strings.Repeat("a", 43):                         Removed,
		"code 01234-56789-ABCDE-FGHJK shown":                         "code (removed) shown",
		"id 0fc63daf-8483-4772-8e79-3d69d8477de4":                    "id 0fc63daf-8483-4772-8e79-3d69d8477de4",
		"eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ done":                    "(removed) done",
		"root:$6$salt$abcdefghijk:1":                                 "root:(removed):1",
		"using ghp_abcdefghijklmnopqrstuvwx":                         "using (removed)",
		"before\n" + pem + "\nafter":                                 "before\n(removed)\nafter",
		`k="` + strings.ReplaceAll(pem, "\n", `\n`) + `"`:            `k="(removed)"`,
		pem[:60]: Removed,
		pem[40:]: Removed,
		"\n\n":   "\n\n",
	} {
		if got := r.Text(in); got != want {
			t.Errorf("%q:\ngot  %q\nwant %q", in, got, want)
		}
	}
}

// A bearer's token goes too, whichever pattern finds it first.
func TestAuthorization(t *testing.T) {
	r := NewRedactor(nil)
	for _, in := range []string{"Authorization: Bearer abcdefghijkl", "authorization=Basic YW5uOnB3cHc=", "got Bearer abcdefghijkl from", "Negotiate YW5uOnB3cHc="} {
		if got := r.Text(in); strings.Contains(got, "abcdef") || strings.Contains(got, "YW5u") {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestMessage(t *testing.T) {
	r := NewRedactor([]string{"hunter2"})
	m := &v1.Object{Meta: &v1.Meta{Kind: "Container", Name: "web"}, Kind: &v1.Object_Workload{Workload: &v1.Workload{
		Spec: &v1.WorkloadSpec{
			Env: map[string]string{"A": "hunter2"}, Args: []string{"x", "hunter2"},
			SecretEnv: map[string]string{"P": "db/password"}, Ports: []*v1.Port{{Address: "hunter2"}},
		},
		Status: &v1.WorkloadStatus{Message: "https://a:b@c said hunter2"},
	}}}
	r.Message(m)
	want := &v1.Object{Meta: &v1.Meta{Kind: "Container", Name: "web"}, Kind: &v1.Object_Workload{Workload: &v1.Workload{
		Spec: &v1.WorkloadSpec{
			Env: map[string]string{"A": Removed}, Args: []string{"x", Removed},
			SecretEnv: map[string]string{"P": "db/password"}, Ports: []*v1.Port{{Address: Removed}},
		},
		Status: &v1.WorkloadStatus{Message: "https://(removed)@c said (removed)"},
	}}}
	if diff := cmp.Diff(want, m, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	sealed := &v1.SealedSecret{Values: map[string][]byte{"k": []byte("sealed")}}
	r.Message(sealed)
	if len(sealed.GetValues()["k"]) > 0 {
		t.Error("bytes stay")
	}
}

func TestObject(t *testing.T) {
	obj := &v1.Object{Kind: &v1.Object_Workload{Workload: &v1.Workload{Spec: &v1.WorkloadSpec{
		Env:     map[string]string{"PORT": "8080", "LOG_LEVEL": "debug", "TZ": "Europe/Berlin", "DB_PASSWORD": "1", "NAME": "hunter2", "PIN": "1234", "SPIN": "5"},
		Files:   []*v1.File{{Path: "/a", Content: proto.String("x = 1")}, {Path: "/b", Secret: "db/key"}},
		Command: []string{"/bin/app", "serve", "-v"},
		Args:    []string{"--port", "80", "--password", "12", "--api-key=abc", "--level=info", "-phunter2", "plain words"},
		Health:  &v1.Health{Http: &v1.HTTPCheck{Path: "/ok?token=x"}, Exec: []string{"/check", "x"}},
	}}}}
	spec := Object(obj).GetWorkload().GetSpec()
	want := map[string]string{"PORT": "8080", "LOG_LEVEL": "debug", "TZ": "Europe/Berlin", "DB_PASSWORD": "(removed) 1 characters", "NAME": "(removed) 7 characters", "PIN": "(removed) 4 characters", "SPIN": "5"}
	if diff := cmp.Diff(want, spec.GetEnv()); diff != "" {
		t.Error(diff)
	}
	for _, c := range []struct{ got, want []string }{
		{spec.GetCommand(), []string{"/bin/app", Removed, "-v"}},
		{spec.GetArgs(), []string{"--port", "80", "--password", Removed, "--api-key=" + Removed, "--level=info", Removed, Removed}},
		{spec.GetHealth().GetExec(), []string{"/check", Removed}},
		{[]string{spec.GetHealth().GetHttp().GetPath(), spec.GetFiles()[0].GetContent(), spec.GetFiles()[1].GetSecret()}, []string{"/ok?" + Removed, "(removed) 5 characters", "db/key"}},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Error(diff)
		}
	}
	if obj.GetWorkload().GetSpec().GetEnv()["NAME"] != "hunter2" {
		t.Error("the object itself was changed")
	}
	machine := &v1.Object{Kind: &v1.Object_Capsule{Capsule: &v1.Capsule{Spec: &v1.CapsuleSpec{Registries: []*v1.RegistrySpec{{Name: "a", Username: "ann", Password: "db/p"}}}}}}
	if r := Object(machine).GetCapsule().GetSpec().GetRegistries()[0]; r.GetUsername() != Removed || r.GetPassword() != "db/p" {
		t.Error(r)
	}
}

func TestValues(t *testing.T) {
	obj := &v1.Object{Kind: &v1.Object_Workload{Workload: &v1.Workload{Spec: &v1.WorkloadSpec{
		Env:   map[string]string{"API_TOKEN": "env-token", "URL": "pg://ann:url-word@db/x", "LEVEL": "unusual", "AUTH": "true"},
		Files: []*v1.File{{Content: proto.String("user = ann\npassword = file-word\n")}},
		Args:  []string{"--secret", "arg-word", "--password=arg-too", "--name", "unusual"},
	}}}}
	got := strings.Join(Values(obj), " ")
	for _, want := range []string{"env-token", "url-word", "file-word", "arg-word", "arg-too"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not among %q", want, got)
		}
	}
	for _, not := range []string{"unusual", "true", "ann"} {
		if strings.Contains(got, not) {
			t.Errorf("%q is among %q", not, got)
		}
	}
}

// FuzzText: a value that is known is in no text any more, in none of its forms.
func FuzzText(f *testing.F) {
	f.Add("correct horse", "say ", " twice")
	f.Add("a\"b&c/d", "password=", "\n-----BEGIN PRIVATE KEY-----")
	f.Fuzz(func(t *testing.T, secret, before, after string) {
		trimmed := strings.TrimSpace(secret)
		if len(trimmed) < valueMin || strings.Contains(Removed, trimmed) || strings.ContainsAny(secret, "()") {
			return
		}
		r := NewRedactor([]string{secret})
		for _, form := range []string{secret, base64.StdEncoding.EncodeToString([]byte(secret)), url.QueryEscape(secret)} {
			if len(form) < lineMin && form != secret || strings.Contains(before+after, form) {
				continue
			}
			if got := r.Text(before + "|" + form + "|" + after); strings.Contains(got, "|"+form+"|") {
				t.Errorf("%q stays in %q", form, got)
			}
		}
	})
}
