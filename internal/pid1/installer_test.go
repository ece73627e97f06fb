package pid1

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"capsule/internal/disk"
	"capsule/internal/lvm"
)

// Only a medium that can be pulled out, and that never was a capsule's nor is to be
// one, installs; and none that may be one becomes a capsule.
func TestMedium(t *testing.T) {
	for _, removable := range []bool{false, true} {
		for _, stay := range []bool{false, true} {
			for _, perm := range []lvm.Content{lvm.Used, lvm.New, lvm.Blank, lvm.Unknown} {
				m, err := look(removable, func() (lvm.Content, error) { return perm, nil }, func() (bool, error) { return stay, nil })
				if err != nil {
					t.Fatal(err)
				}
				fresh := perm == lvm.New || perm == lvm.Blank
				if got, want := m.installs(), removable && !stay && fresh; got != want {
					t.Errorf("removable %t, stay %t, PERM %d: installs %t", removable, stay, perm, got)
				}
				if got, want := m.creates(), !removable || stay; fresh && got != want {
					t.Errorf("removable %t, stay %t, PERM %d: creates %t", removable, stay, perm, got)
				}
			}
		}
	}
}

// What can't be found out makes no capsule of a stick. What isn't needed may fail.
func TestUnknownMedium(t *testing.T) {
	broken := errors.New("I/O error")
	perm := func(c lvm.Content, err error) func() (lvm.Content, error) {
		return func() (lvm.Content, error) { return c, err }
	}
	stay := func(s bool, err error) func() (bool, error) { return func() (bool, error) { return s, err } }
	for name, tc := range map[string]struct {
		removable bool
		perm      func() (lvm.Content, error)
		stay      func() (bool, error)
		known     bool
	}{
		"a new stick, no ESP":          {true, perm(lvm.New, nil), stay(false, broken), false},
		"a blank stick, no ESP":        {true, perm(lvm.Blank, nil), stay(false, broken), false},
		"an ESP that failed half-way":  {true, perm(lvm.New, nil), stay(true, broken), false},
		"a stick that can't be read":   {true, perm(lvm.Used, broken), stay(true, nil), false},
		"a capsule's USB disk, no ESP": {true, perm(lvm.Used, nil), stay(false, broken), true},
		"built in, no ESP":             {false, perm(lvm.Used, broken), stay(false, broken), true},
	} {
		m, err := look(tc.removable, tc.perm, tc.stay)
		if m.known != tc.known || (err == nil) != tc.known || m.installs() || !tc.known && m.creates() {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	if (medium{}).creates() || (medium{}).installs() {
		t.Error("a medium that was never looked at is used")
	}
}

// A new PERM on a medium that isn't known is left as it is, in recovery mode, which
// says what to do.
func TestPermOfUnknownMedium(t *testing.T) {
	file := filepath.Join(t.TempDir(), "perm")
	before := make([]byte, 8<<20)
	copy(before[lvm.MarkAt:], lvm.Mark())
	if err := os.WriteFile(file, before, 0o600); err != nil {
		t.Fatal(err)
	}
	m := &machine{log: newJournal(), boot: disk.Boot{PERM: file}}
	if err := m.lookMedium(); err != nil { // the disk has no name
		t.Fatal(err)
	}
	created, err := m.preparePerm(t.Context(), lvm.New)
	if created || !errors.Is(err, errUnsure) || !strings.Contains(err.Error(), "switch the machine off and on") {
		t.Errorf("created %t, %v", created, err)
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, before) {
		t.Errorf("PERM was written to: %v", err)
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
