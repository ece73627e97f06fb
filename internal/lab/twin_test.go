//go:build linux

package lab

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// A twin shares nothing with its like but what an operator reaches both with.
func TestTwin(t *testing.T) {
	dir := t.TempDir()
	like := &Machine{Name: "a", Dir: filepath.Join(dir, "a"), API: "127.0.0.1:1", Publish: []Publish{{2, 80, "tcp"}}, Record: true, MemoryBytes: 1}
	if err := os.Mkdir(like.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"variables.fd", "ca.pem", "operator.pem", "operator.key"} {
		if err := os.WriteFile(like.path(name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disk := filepath.Join(dir, "cut.img")
	if err := os.WriteFile(disk, []byte("disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := like.Twin(t.Context(), "a", disk); !errdefs.IsAlreadyExists(err) {
		t.Error(err)
	}
	made, err := like.Twin(t.Context(), "b", disk)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Attach(dir, "b")
	if err != nil {
		t.Fatal(err)
	}
	if got.API != made.API || got.API == like.API || got.Publish[0].HostPort == 2 || got.Publish[0].Port != 80 || got.Record || got.MemoryBytes != 1 {
		t.Errorf("%+v", got)
	}
	if text, err := os.ReadFile(got.Disk()); err != nil || string(text) != "disk" {
		t.Errorf("%q, %v", text, err)
	}
	if c, err := got.Context(); err != nil || c.CA != "ca.pem" || c.Name != "b" {
		t.Errorf("%+v, %v", c, err)
	}
}
