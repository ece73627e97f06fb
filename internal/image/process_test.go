package image

import (
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "capsule/api/capsule/v1"
)

func TestCommand(t *testing.T) {
	type words = []string
	tests := []struct {
		name                string
		entrypoint, cmd     words
		command, args, want words
	}{
		{"image alone", words{"e"}, words{"c"}, nil, nil, words{"e", "c"}},
		{"command drops the default arguments", words{"e"}, words{"c"}, words{"x"}, nil, words{"x"}},
		{"args replace them only", words{"e"}, words{"c"}, nil, words{"a"}, words{"e", "a"}},
		{"both", words{"e"}, words{"c"}, words{"x"}, words{"a"}, words{"x", "a"}},
		{"no entrypoint", nil, words{"c", "d"}, nil, nil, words{"c", "d"}},
		{"args alone", nil, nil, nil, words{"a"}, words{"a"}},
		{"empty entrypoint is none", words{""}, words{"date"}, nil, nil, words{"date"}},
		{"empty argument stays", words{"e"}, words{""}, nil, nil, words{"e", ""}},
		{"nothing", nil, nil, nil, nil, nil},
		{"only an empty entrypoint", words{""}, nil, nil, nil, nil},
		{"empty program", words{"", "x"}, nil, nil, nil, nil},
		{"NUL", words{"a\x00b"}, nil, nil, nil, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cfg := ocispec.ImageConfig{Entrypoint: test.entrypoint, Cmd: test.cmd}
			got, _, _, _, _, _, err := Process(cfg, &v1.WorkloadSpec{Image: "app:1", Command: test.command, Args: test.args})
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if (test.want == nil) != errdefs.IsInvalidArgument(err) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	image := []string{"A=12=3", "B==", "C=l1\nl2", "D=", `E="q"`, "PATH=/a", "PATH=/b", "broken", "=x", "N=a\x00b"}
	got, err := environment(image, map[string]string{"A": "x=y=", "Z": "z", "Y": ""})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"A=x=y=", "B==", "C=l1\nl2", "D=", `E="q"`, "PATH=/b", "Y=", "Z=z"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, _ := environment(nil, nil); len(got) != 1 || got[0] != pathDefault {
		t.Errorf("default: %q", got)
	}
	for _, bad := range []map[string]string{{"": "x"}, {"a=b": "x"}, {"a": "x\x00"}} {
		if _, err := environment(nil, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestProcess(t *testing.T) {
	cfg := ocispec.ImageConfig{Entrypoint: []string{"e"}, WorkingDir: "srv/x/", User: "app", StopSignal: "SIGRTMIN+3"}
	_, _, cwd, user, signal, grace, err := Process(cfg, &v1.WorkloadSpec{})
	if err != nil || cwd != "/srv/x" || user != "app" || signal != 37 || grace != 10*time.Second {
		t.Errorf("%q %q %d %v %v", cwd, user, signal, grace, err)
	}
	spec := &v1.WorkloadSpec{WorkingDir: "/w/", User: "1:2", StopSignal: "INT", StopGrace: durationpb.New(time.Minute)}
	_, _, cwd, user, signal, grace, err = Process(cfg, spec)
	if err != nil || cwd != "/w" || user != "1:2" || signal != 2 || grace != time.Minute {
		t.Errorf("%q %q %d %v %v", cwd, user, signal, grace, err)
	}
	_, _, cwd, _, signal, _, _ = Process(ocispec.ImageConfig{Entrypoint: []string{"e"}}, nil)
	if cwd != "/" || signal != 15 {
		t.Errorf("defaults: %q %d", cwd, signal)
	}
	for _, bad := range []*v1.WorkloadSpec{{WorkingDir: "w"}, {StopSignal: "FOO"}} {
		if _, _, _, _, _, _, err := Process(cfg, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	cfg.StopSignal = "SIGFOO"
	_, _, _, _, _, _, err = Process(cfg, &v1.WorkloadSpec{Image: "app:1"})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "SIGFOO") {
		t.Errorf("%v", err)
	}
}

func TestNormalise(t *testing.T) {
	for ref, want := range map[string]string{
		"web":                 "docker.io/library/web:latest",
		"web:1":               "docker.io/library/web:1",
		"me/web":              "docker.io/me/web:latest",
		"registry.lan:5000/w": "registry.lan:5000/w:latest",
		"a b":                 "",
		"":                    "",
		"web:":                "",
	} {
		got, err := Normalise(ref)
		if got != want || (want == "") != errdefs.IsInvalidArgument(err) {
			t.Errorf("%q is %q, want %q: %v", ref, got, want, err)
		}
		if want != "" {
			if again, err := Normalise(got); again != got || err != nil {
				t.Errorf("%q is %q: %v", got, again, err)
			}
		}
	}
}
