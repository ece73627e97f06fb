package cgroup

import (
	"os"
	"path/filepath"
	"strings"
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

// A limit goes to the disks below all layers, each once.
func TestLimitIO(t *testing.T) {
	sys := t.TempDir()
	old := devices
	devices = filepath.Join(sys, "dev")
	defer func() { devices = old }()
	// A volume on two partitions of one disk, and a disk of its own.
	device := func(dir, number string, below ...string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(sys, dir, "slaves"), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(sys, dir, "dev"), number+"\n")
		link(t, filepath.Join(sys, dir), filepath.Join(devices, number))
		for _, b := range below {
			link(t, filepath.Join(sys, b), filepath.Join(sys, dir, "slaves", filepath.Base(b)))
		}
	}
	if err := os.MkdirAll(devices, 0o755); err != nil {
		t.Fatal(err)
	}
	device("vda", "254:0")
	for _, p := range []string{"vda3", "vda4"} {
		device("vda/"+p, "254:"+p[3:])
		write(t, filepath.Join(sys, "vda", p, "partition"), p[3:])
	}
	device("dm-0", "253:0", "vda/vda4", "vda/vda3")
	device("dm-1", "253:1", "dm-0")
	device("vdb", "254:16")
	device("loop", "7:0", "loop")
	for number, want := range map[string]string{
		"253:1": "254:0 254:0", "254:4": "254:0", "254:16": "254:16", "254:0": "254:0", "7:0": "error", "1:1": "error",
	} {
		disks, err := disksUnder(number, 0)
		if got := strings.Join(disks, " "); (err != nil) != (want == "error") || err == nil && got != want {
			t.Errorf("below %s: %q, %v", number, got, err)
		}
	}
}

func TestFreeIO(t *testing.T) {
	g := Group(t.TempDir())
	if err := g.FreeIO(); err != nil {
		t.Errorf("a kernel that limits nothing: %v", err)
	}
	write(t, filepath.Join(string(g), "io.max"), "254:0"+IOLimits{ReadBytes: 5, WriteOperations: 7}.String()+"\n")
	if err := g.FreeIO(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(string(g), "io.max"))
	// The kernel takes each write as a change; a file is only written over.
	if want := "254:0 rbps=max wbps=max riops=max wiops=max"; err != nil || !strings.HasPrefix(string(text), want) {
		t.Errorf("%q, %v", text, err)
	}
	if got := (IOLimits{ReadBytes: 5, WriteOperations: 7}).String(); got != " rbps=5 wbps=max riops=max wiops=7" {
		t.Error(got)
	}
	if err := g.LimitIO(IOLimits{}, "/no/such/file"); err != nil {
		t.Errorf("without a limit nothing is looked for: %v", err)
	}
	if err := g.LimitIO(IOLimits{ReadBytes: 1}, "/no/such/file"); err == nil {
		t.Error("the disk of no file")
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}
