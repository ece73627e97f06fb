package pid1

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"capsule/internal/disk"
	"capsule/internal/lvm"
)

// Only a medium that can be pulled out, and that never was a capsule's nor is to be
// one, installs.
func TestInstalls(t *testing.T) {
	for _, removable := range []bool{false, true} {
		for _, stay := range []bool{false, true} {
			for _, perm := range []lvm.Content{lvm.Used, lvm.New, lvm.Blank, lvm.Unknown} {
				want := removable && !stay && (perm == lvm.New || perm == lvm.Blank)
				if got := (medium{removable, perm, stay}).installs(); got != want {
					t.Errorf("removable %t, stay %t, PERM %d: %t", removable, stay, perm, got)
				}
			}
		}
	}
}

func TestInstallerMode(t *testing.T) {
	m := &machine{installer: true, reason: whyInstaller}
	if env := strings.Join(m.serveEnv(), "\n"); !strings.Contains(env, "CAPSULE_MODE=installer\n") {
		t.Error(env)
	}
	if got := m.idFile(); got != ramIDFile {
		t.Errorf("the id is kept in %q", got)
	}
	if got := (&machine{reason: "no /perm"}).idFile(); got != "" {
		t.Errorf("without /perm the id is kept in %q", got)
	}
}

func TestGivenID(t *testing.T) {
	const id = "00112233445566778899aabbccddeeff"
	for text, want := range map[string]string{id + "\n": id, id: id, id[1:]: "", "../../etc/passwd": "", "": ""} {
		dir := t.TempDir()
		file := filepath.Join(dir, disk.MachineIDFile)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := givenID(dir); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
	if got := givenID(t.TempDir()); got != "" {
		t.Errorf("no file: %q", got)
	}
}
