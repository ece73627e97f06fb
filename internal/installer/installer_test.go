package installer

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
)

// sysTree makes a tree of the kernel's in which device 0:0, as the kernel numbers what
// is none, is the disk of this name. So a file stands for its device.
func sysTree(t *testing.T, name string, attributes map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for file, text := range attributes {
		file = filepath.Join(root, "block", name, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "dev/block"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../block/"+name, filepath.Join(root, "dev/block/0:0")); err != nil {
		t.Fatal(err)
	}
	return root
}

// Between the check and the first write another disk may get the name, or something
// onto the disk: what is open is looked at once more.
func TestOpen(t *testing.T) {
	const size = 8 << 20
	image := filepath.Join(t.TempDir(), "disk")
	planned := map[string]string{"size": "16384", "device/serial": "NVME1", "wwid": "eui.1"}
	for name, tc := range map[string]struct {
		disk  string
		sysfs map[string]string // what the kernel says of what is open
		holds string
		ok    bool
	}{
		"it":                            {disk: "nvme0n1", sysfs: planned, ok: true},
		"it, by another name":           {disk: "nvme1n1", sysfs: planned, ok: true},
		"another disk":                  {disk: "nvme0n1", sysfs: map[string]string{"size": "16384", "device/serial": "NVME2", "wwid": "eui.1"}},
		"another one of its serial":     {disk: "nvme0n1", sysfs: map[string]string{"size": "16384", "device/serial": "NVME1", "wwid": "eui.2"}},
		"another size":                  {disk: "nvme0n1", sysfs: map[string]string{"size": "8192", "device/serial": "NVME1", "wwid": "eui.1"}},
		"something on it":               {disk: "nvme0n1", sysfs: planned, holds: "LUKS\xba\xbe"},
		"the one that we run from":      {disk: "sda", sysfs: planned},
		"a disk that's gone, no medium": {disk: "nvme0n1", sysfs: map[string]string{"size": "0"}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(image, []byte(tc.holds), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(image, size); err != nil {
				t.Fatal(err)
			}
			plan := Plan{Disk: Candidate{Device: disk.Device{Name: "nvme0n1", Serial: "NVME1", WWN: "eui.1", Bytes: size, Sector: 512}}}
			plan.Digest = digest(plan.Disk)
			i := New(Options{Sysfs: sysTree(t, tc.disk, tc.sysfs), Boot: disk.Boot{Disk: "sda"}, Log: slog.New(slog.DiscardHandler)})
			to, err := i.Open(image, plan)
			if tc.ok != (err == nil) {
				t.Fatal(err)
			}
			if tc.ok {
				_ = to.Close()
			} else if !errdefs.IsAborted(err) && !errdefs.IsNotFound(err) {
				t.Error(err)
			}
		})
	}
}
