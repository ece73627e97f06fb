//go:build linux

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	crypt "filippo.io/age"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/backup"
	"capsule/internal/contexts"
	"capsule/internal/identity"
	"capsule/internal/state"
)

// backedUp is a capsule with a secret and a volume, and keys to back it up with.
type backedUp struct {
	*testCapsule
	stop      func()
	recipient string
	key       string // file
	dir       string
}

func newBackedUp(t *testing.T) *backedUp {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	t.Setenv("CAPSULE_HOST", "")
	var ends []func()
	b := &backedUp{dir: dir, key: filepath.Join(dir, "key.txt"), stop: func() {
		for _, end := range slices.Backward(ends) {
			end()
		}
		ends = nil
	}}
	t.Cleanup(func() { b.stop() })
	machine := filepath.Join(dir, "machine")
	if err := os.Mkdir(machine, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	if b.testCapsule, err = startCapsule(machine, nil, func(end func()) { ends = append(ends, end) }); err != nil {
		t.Fatal(err)
	}
	if err := b.save(filepath.Join(dir, "config", "capsule"), "box", capsulev1.Role_ROLE_ADMIN); err != nil {
		t.Fatal(err)
	}
	if err := b.save(filepath.Join(dir, "config", "capsule"), "reader", capsulev1.Role_ROLE_OPERATOR); err != nil {
		t.Fatal(err)
	}
	id, err := crypt.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	b.recipient = id.Recipient().String()
	manifest := "kind: Secret\nname: db\ndata:\n  password: precious\n---\nkind: Volume\nname: photos\nsize: 64MiB\n"
	for name, text := range map[string]string{b.key: id.String() + "\n", filepath.Join(dir, "all.yaml"): manifest} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.ok(t, "apply", "-f", filepath.Join(dir, "all.yaml"), "--wait")
	b.fill(t, strings.Repeat("photo", 200_000))
	return b
}

// fill writes the volume from its beginning.
func (b *backedUp) fill(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(b.testCapsule.dir, "volumes", "photos", "disk"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ok runs a command that must succeed.
func (b *backedUp) ok(t *testing.T, args ...string) (out, errs string) {
	t.Helper()
	code, out, errs := runTyped(t, "", append([]string{"--capsule", "box"}, args...)...)
	if code != 0 {
		t.Fatalf("%v: exit %d\n%s%s", args, code, out, errs)
	}
	return out, errs
}

// A dead box is back: from its backup on a machine that was started from a stick, with
// the context that there was, the same secret and the same data.
func TestInstallRestore(t *testing.T) {
	b := newBackedUp(t)
	folder := filepath.Join(b.dir, "backups") + "/"
	b.ok(t, "capsule", "backup", "--volumes", "--recipient", b.recipient, folder)
	changed := "changed" + strings.Repeat("photo", 200_000)
	b.fill(t, changed[:1_000_000])
	if _, errs := b.ok(t, "capsule", "backup", "--volumes", "--recipient", b.recipient, folder); !strings.Contains(errs, "what changed") {
		t.Errorf("the second backup: %s", errs)
	}
	b.stop()

	s := &stick{disks: stickDisks()}
	config := os.Getenv("XDG_CONFIG_HOME")
	startStick(t, s)
	moveContext(t, config)
	s.written = func(staged *state.Staged) {
		if staged.Reclaim {
			t.Error("one more is let in, although there is a context")
		}
		b.comeBack(t, staged)
	}
	code, out, errs := runTyped(t, "", "install", "stick", "--yes", "--restore", folder, "--identity", b.key, "--timeout", "1m")
	if code != 0 || !strings.Contains(out, "capsule capsule-test is restored") || !strings.Contains(errs, `it becomes capsule "capsule-test"`) {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	got, err := os.ReadFile(filepath.Join(b.testCapsule.dir, "volumes", "photos", "disk"))
	if err != nil || string(bytes.TrimRight(got, "\x00")) != changed[:1_000_000] {
		t.Errorf("volume: %d bytes, %v", len(got), err)
	}
	// The context of before is current, and the capsule is the same.
	code, out, errs = runTyped(t, "", "get", "secrets")
	if code != 0 || !strings.Contains(out, "db") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	if code, out, errs := runTyped(t, "", "capsule", "restore", folder, "--identity", b.key); code != 0 || !strings.Contains(out, "no volume waits") {
		t.Errorf("again: exit %d\n%s%s", code, out, errs)
	}
}

// moveContext takes the stick's context over to the folder that has the capsule's.
func moveContext(t *testing.T, config string) {
	t.Helper()
	there, err := contexts.Open("")
	if err != nil {
		t.Fatal(err)
	}
	c, err := there.Get("box")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CONFIG_HOME", config)
	here, err := contexts.Open("")
	if err != nil {
		t.Fatal(err)
	}
	c.Name = "stick"
	if err := here.Put(c); err != nil {
		t.Fatal(err)
	}
}

// comeBack is the first start from the new disk, at the address of before.
func (b *backedUp) comeBack(t *testing.T, staged *state.Staged) {
	perm := filepath.Join(b.dir, "new")
	esp := filepath.Join(b.dir, "esp")
	text, err := os.ReadFile(staged.File)
	if err := errors.Join(err, os.WriteFile(esp, text, 0o600), os.MkdirAll(perm, 0o700)); err != nil {
		t.Error(err)
		return
	}
	if err := state.Take(perm, esp, func(string) bool { return true }); err != nil {
		t.Error(err)
		return
	}
	id, err := identity.Load(filepath.Join(perm, "identity"), "")
	if err != nil {
		t.Error(err)
		return
	}
	b.testCapsule = &testCapsule{dir: perm, id: id, address: b.address}
	var ends []func()
	b.stop = func() {
		for _, end := range slices.Backward(ends) {
			end()
		}
	}
	if err := b.serve(nil, func(end func()) { ends = append(ends, end) }); err != nil {
		t.Error(err)
	}
}

// What can't be restored is told before the stick hears of it.
func TestInstallRestoreRefuses(t *testing.T) {
	b := newBackedUp(t)
	file := filepath.Join(b.dir, "box.backup")
	b.ok(t, "capsule", "backup", "--volumes", "--recipient", b.recipient, file)
	saved, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other, err := crypt.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(saved)
	flipped[len(flipped)/2] ^= 1
	newer := b.sealed(t, &capsulev1.BackupHeader{Format: backup.Format + 1, Id: backup.NewID(), Version: "v9.0.0"})
	system := b.sealed(t, &capsulev1.BackupHeader{Format: backup.Format, Id: backup.NewID(), Version: "v9.0.0", Name: "later"})
	incremental := b.sealed(t, &capsulev1.BackupHeader{Format: backup.Format, Id: backup.NewID(), Base: backup.NewID()})
	dir := t.TempDir()
	for name, text := range map[string][]byte{
		"whole": saved, "cut": saved[:len(saved)-1], "short": saved[:100], "flipped": flipped, "letter": []byte("Dear Ann, …"), "empty": nil,
		"newer": newer, "system": system, "incremental": incremental, "other.key": []byte(other.String()), "no.key": []byte("AGE-SECRET-KEY-1NONSENSE"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := &stick{disks: stickDisks(), written: func(*state.Staged) {}}
	startStick(t, s)
	for _, tc := range []struct {
		file, key string
		code      int
		says      string
	}{
		{"whole", filepath.Join(dir, "other.key"), exitRefused, "does not open with this key"},
		{"whole", filepath.Join(dir, "no.key"), exitUsage, "holds no key"},
		{"whole", filepath.Join(dir, "absent"), exitFailed, "no such file"},
		{"whole", "", exitUsage, "no terminal to ask for the passphrase on"},
		{"cut", b.key, exitFailed, "cut off or changed since it was written"},
		{"short", b.key, exitFailed, "is no backup"},
		{"flipped", b.key, exitFailed, "cut off or changed since it was written"},
		{"letter", b.key, exitFailed, "is no backup"},
		{"empty", b.key, exitFailed, "is no backup"},
		{"absent", b.key, exitFailed, "no such file"},
		{"newer", b.key, exitFailed, "made by a newer version"},
		{"system", b.key, exitFailed, "made by a newer version"},
		{"incremental", b.key, exitFailed, "is not in"},
	} {
		args := []string{"install", "box", "--yes", "--no-wait", "--restore", filepath.Join(dir, tc.file)}
		if tc.key != "" {
			args = append(args, "--identity", tc.key)
		}
		code, out, errs := runTyped(t, "", args...)
		if code != tc.code || !strings.Contains(errs, tc.says) || s.wrote.Load() != 0 {
			t.Errorf("%s: exit %d, want %d, %q; %d written\n%s%s", tc.file, code, tc.code, tc.says, s.wrote.Load(), out, errs)
		}
	}
	// Without a context of the capsule, its console lets one in.
	s.written = func(staged *state.Staged) {
		if !staged.Reclaim || staged.Needs() == 0 {
			t.Errorf("reclaim %v, needs %d bytes", staged.Reclaim, staged.Needs())
		}
	}
	code, out, errs := runTyped(t, "", "install", "box", "--yes", "--restore", file, "--identity", b.key)
	if code != 0 || s.wrote.Load() != 1 || !strings.Contains(errs, "capsulectl claim capsule-test") || !strings.Contains(errs, "capsulectl capsule restore") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}

// sealed is a backup with this header and nothing else.
func (b *backedUp) sealed(t *testing.T, h *capsulev1.BackupHeader) []byte {
	t.Helper()
	to, err := crypt.ParseX25519Recipient(b.recipient)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w, err := crypt.Encrypt(&out, to)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := backup.NewWriter(w, h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := saved.End(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// The chain of a folder: what is in each, and when a whole one is made.
func TestBackupFolder(t *testing.T) {
	b := newBackedUp(t)
	folder := filepath.Join(b.dir, "backups")
	again := func(want string, more ...string) string {
		t.Helper()
		out, errs := b.ok(t, append([]string{"capsule", "backup", "--volumes", "--recipient", b.recipient, folder + "/"}, more...)...)
		if !strings.Contains(errs, want) {
			t.Errorf("doesn't say %q: %s", want, errs)
		}
		return strings.TrimSpace(out)
	}
	whole := again("a whole backup")
	second := again("what changed since the backup before, 0 B of volumes")
	if info, err := os.Stat(second); err != nil || info.Size() > 200_000 {
		t.Errorf("nothing changed, and it has %v bytes (%v)", info.Size(), err)
	}
	again("a whole backup", "--full")
	third := again("what changed")
	if !strings.Contains(filepath.Base(third), "-01-") {
		t.Errorf("it stands on the one that is whole again: %s", third)
	}
	if err := os.WriteFile(filepath.Join(folder, indexFile), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	newest := again("its index can't be used: this backup is a whole one")
	if err := os.Remove(newest); err != nil {
		t.Fatal(err)
	}
	again("the newest backup is not in it any more")
	if code, out, errs := runTyped(t, "", "capsule", "backup", "--verify", "--identity", b.key, folder); code != 0 || !strings.Contains(out, `is whole: capsule "capsule-test"`) || !strings.Contains(out, "volumes: 1, 1.0 MiB") {
		t.Errorf("verify: exit %d\n%s%s", code, out, errs)
	}
	// Nothing else is left, and all open.
	entries, err := backupsIn(folder)
	if err != nil || len(entries) != 5 || entries[0].file != filepath.Base(whole) {
		t.Errorf("%d backups, %v", len(entries), err)
	}
	left, err := os.ReadDir(folder)
	if err != nil || len(left) != len(entries)+1 {
		t.Errorf("%d files, %v", len(left), err)
	}
	a := &app{ui: &ui{out: io.Discard, err: io.Discard}}
	for _, e := range entries {
		saved, err := a.openBackup(filepath.Join(folder, e.file), OpenOptions{Identity: b.key})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := saved.check(t.Context(), a); err != nil || got.used() != 4*backup.ChunkBytes {
			t.Errorf("%s: %v", e.file, err)
		}
	}
}

// Who may not, and what is asked for in vain, leaves no file.
func TestBackupRefuses(t *testing.T) {
	b := newBackedUp(t)
	short, long := filepath.Join(b.dir, "short.pass"), filepath.Join(b.dir, "long.pass")
	for name, text := range map[string]string{short: "eleven char\n", long: "correct horse battery staple\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(b.dir, "box.backup")
	for name, tc := range map[string]struct {
		args []string
		code int
		says string
	}{
		"no key, no terminal": {[]string{file}, exitUsage, "no terminal to ask for the passphrase on"},
		"no recipient":        {[]string{file, "--recipient", "ann"}, exitUsage, "is no recipient"},
		"both":                {[]string{file, "--recipient", b.recipient, "--passphrase-file", long}, exitUsage, "is for recipients, or has a passphrase"},
		"short":               {[]string{file, "--passphrase-file", short}, exitUsage, "at least 12 characters"},
		"an operator":         {[]string{file, "--recipient", b.recipient, "--capsule", "reader"}, exitRefused, "admin"},
		"no folder":           {[]string{filepath.Join(b.dir, "no", "box.backup"), "--recipient", b.recipient}, exitFailed, "no such file"},
	} {
		code, out, errs := runTyped(t, "", append([]string{"--capsule", "box", "capsule", "backup"}, tc.args...)...)
		if code != tc.code || !strings.Contains(errs, tc.says) {
			t.Errorf("%s: exit %d, want %d, %q\n%s%s", name, code, tc.code, tc.says, out, errs)
		}
	}
	if left, _ := filepath.Glob(file + "*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// A passphrase opens what it closed, and no other does.
	b.ok(t, "capsule", "backup", "--passphrase-file", long, file)
	wrong := filepath.Join(b.dir, "wrong.pass")
	if err := os.WriteFile(wrong, []byte("correct horse battery stapler"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{ui: &ui{out: io.Discard, err: io.Discard}}
	for pass, want := range map[string]bool{long: true, wrong: false} {
		saved, err := a.openBackup(file, OpenOptions{PassphraseFile: pass})
		if err != nil {
			t.Fatal(err)
		}
		c, err := saved.check(t.Context(), a)
		if (err == nil) != want {
			t.Errorf("%s: %v", pass, err)
		}
		if want && (len(c.header.GetWithoutData()) != 1 || time.Since(c.header.GetCreatedAt().AsTime()) > time.Hour) {
			t.Errorf("header: %v", c.header)
		}
	}
	saved, err := os.ReadFile(file)
	if err != nil || bytes.Contains(saved, []byte("capsule-test")) || bytes.Contains(saved, []byte("PRIVATE KEY")) {
		t.Errorf("the file is readable, %v", err)
	}
}
