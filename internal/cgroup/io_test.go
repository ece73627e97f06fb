package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

// Of a write through a volume to a disk, the disk's part counts.
func TestIO(t *testing.T) {
	old := devices
	devices = t.TempDir()
	defer func() { devices = old }()
	if err := os.MkdirAll(filepath.Join(devices, "253:1", "slaves", "vda4"), 0o755); err != nil {
		t.Fatal(err)
	}
	g := Group(t.TempDir())
	if r, w, err := g.IO(); r != 0 || w != 0 || err != nil {
		t.Errorf("of a kernel that does not count: %d, %d, %v", r, w, err)
	}
	text := "253:1 rbytes=4096 wbytes=8192 rios=1 wios=2\n7:0 rbytes=100 wbytes=0\n\n" +
		"254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2 cost.vrate=100.00\n254:16\n"
	if err := os.WriteFile(filepath.Join(string(g), "io.stat"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, w, err := g.IO(); r != 4097 || w != 8194 || err != nil {
		t.Errorf("%d, %d, %v", r, w, err)
	}
}
