package runc

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestWithSecrets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	secrets := []string{"PASSWORD=a=b\nc\"", "PATH=/mine", "EMPTY="}
	if err := os.WriteFile(file, Environment(secrets), 0o600); err != nil {
		t.Fatal(err)
	}
	limit := int64(1<<62 + 1) // no float64
	want := &specs.Spec{
		Version: "1.2.0", Annotations: map[string]string{Annotation: file, "other": "x"},
		Process: &specs.Process{Args: []string{"/web"}, Env: []string{"A=1", "PATH=/bin", "PASSWORD=of the image"}, Cwd: "/"},
		Linux:   &specs.Linux{Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}},
	}
	before, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	after, err := withSecrets(before)
	if err != nil {
		t.Fatal(err)
	}
	got := &specs.Spec{}
	if err := json.Unmarshal(after, got); err != nil {
		t.Fatal(err)
	}
	want.Process.Env = []string{"A=1", "PATH=/mine", "PASSWORD=a=b\nc\"", "EMPTY="}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestOthersStayAsTheyAre(t *testing.T) {
	for _, text := range []string{
		`{"process": {"env": ["A=1"]}, "x": 1e400}`, `{"annotations": {"a": "b"}}`, `{}`,
		`{"annotations": {"capsule.environment": "/no/such/file"}}`, // nothing to add to
	} {
		if got, err := withSecrets([]byte(text)); err != nil || string(got) != text {
			t.Errorf("%s became %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "[]", `{"process": 1}`, `{"process": {"env": [1]}}`,
		`{"annotations": {"capsule.environment": "/no/such/file"}, "process": {}}`} {
		if got, err := withSecrets([]byte(text)); err == nil && text != "" {
			t.Errorf("%s became %s", text, got)
		}
	}
}

// As containerd's shim calls it.
func TestCreate(t *testing.T) {
	dir := t.TempDir()
	file, settings := filepath.Join(dir, "env"), filepath.Join(dir, "config.json")
	text := `{"annotations": {"capsule.environment": "` + file + `"}, "process": {"env": []}}`
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "A=secret\x00")
	args := func(verb string) []string {
		return []string{"--root", "/run/runc", "--log", filepath.Join(dir, "log.json"), "--log-format", "json", verb, "--bundle", dir, "w1"}
	}
	for verb, changes := range map[string]bool{"create": true, "delete": false} {
		write(settings, text)
		if err := complete(args(verb)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(settings)
		if err != nil || strings.Contains(string(got), "A=secret") != changes {
			t.Errorf("%s: %s, %v", verb, got, err)
		}
		info, err := os.Stat(settings)
		if err != nil || changes && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", verb, info, err)
		}
	}
	write(settings, text)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	err := complete(args("create"))
	if err == nil {
		t.Fatal("it starts without its secrets")
	}
	tell(args("create"), err)
	var line struct{ Level, Msg string }
	got, err := os.ReadFile(filepath.Join(dir, "log.json"))
	if err := json.Unmarshal(got, &line); err != nil || line.Level != "error" || !strings.Contains(line.Msg, "env: no such file") {
		t.Errorf("the shim reads %q, %v", got, err)
	}
	if err != nil {
		t.Error(err)
	}
}

func FuzzReadEnvironment(f *testing.F) {
	f.Add([]byte("A=1\x00B=\x00"))
	f.Add([]byte("\x00\x00x"))
	path := filepath.Join(f.TempDir(), "env")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		env, err := ReadEnvironment(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, Environment(env), 0o600); err != nil {
			t.Fatal(err)
		}
		if again, err := ReadEnvironment(path); err != nil || !slices.Equal(env, again) {
			t.Errorf("%q became %q, %v", env, again, err)
		}
	})
}
