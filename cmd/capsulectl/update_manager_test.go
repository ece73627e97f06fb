//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"capsule/internal/bundle"
	"capsule/internal/disk"
	"capsule/internal/slot"
	"capsule/internal/store"
	"capsule/internal/update"
)

// filesMachine is the machine of a real update manager, with files for its disk.
type filesMachine struct {
	dir      string
	restarts atomic.Int32
}

func (m *filesMachine) path(name string) string { return filepath.Join(m.dir, name) }
func (m *filesMachine) Boot() disk.Boot {
	return disk.Boot{Slot: disk.SlotA, SlotA: m.path("slot_a"), SlotB: m.path("slot_b")}
}
func (m *filesMachine) Normal() bool        { return true }
func (m *filesMachine) Addressed() bool     { return true }
func (m *filesMachine) Reboot(string) error { m.restarts.Add(1); return nil }
func (m *filesMachine) Tell(string) error   { return nil }
func (m *filesMachine) Unready() []string   { return nil }

// systemBundle is a signed bundle of a root's data, with its parts.
func systemBundle(t *testing.T, v string, data []byte, key *bundle.PrivateKey) (all, kernel, root []byte) {
	t.Helper()
	tree, hash, err := bundle.HashTree(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	kernel, root = testKernel(fmt.Sprintf("capsule.verity=%s capsule.verity_offset=%d", hash, len(data))), append(bytes.Clone(data), tree...)
	sum := sha256.Sum256(kernel)
	m := bundle.Manifest{
		Product: bundle.Product, Version: v, Architecture: "amd64", BuiltUnix: 1,
		UKI:  bundle.Part{Size: int64(len(kernel)), SHA256: hex.EncodeToString(sum[:])},
		Root: bundle.Root{Size: int64(len(root)), DataBytes: int64(len(data)), VerityHash: hash},
	}
	var b bytes.Buffer
	if err := bundle.Write(&b, m, key, bytes.NewReader(kernel), bytes.NewReader(root)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), kernel, root
}

// testKernel is the least that has a section .cmdline, where a root's hash stands.
func testKernel(cmdline string) []byte {
	const head, section = 64, 64 + 4 + 20
	b := make([]byte, 300_000)
	le := binary.LittleEndian
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], head)
	copy(b[head:], "PE\x00\x00")
	le.PutUint16(b[head+4:], 0x8664)
	le.PutUint16(b[head+6:], 1) // sections
	copy(b[section:], ".cmdline")
	le.PutUint32(b[section+8:], uint32(len(cmdline)))
	le.PutUint32(b[section+16:], uint32(len(cmdline)))
	le.PutUint32(b[section+20:], 512)
	copy(b[512:], cmdline)
	return b
}

// newFilesMachine runs a version in slot_a.
func newFilesMachine(t *testing.T, v string, data []byte, key *bundle.PrivateKey, slotBytes int64) (*filesMachine, *update.Manager) {
	t.Helper()
	m := &filesMachine{dir: t.TempDir()}
	_, kernel, root := systemBundle(t, v, data, key)
	for name, data := range map[string][]byte{
		"slot_a": root, "slot_b": nil, "esp/EFI/capsule/first.efi": kernel,
		"esp/loader/entries/capsule-slot_a.conf": []byte("title Capsule " + v + "\nsort-key capsule\nversion 1\nefi /EFI/capsule/first.efi\n"),
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(m.path(name)), 0o700), os.WriteFile(m.path(name), data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Truncate(m.path("slot_a"), slotBytes), os.Truncate(m.path("slot_b"), slotBytes)); err != nil {
		t.Fatal(err)
	}
	state, err := store.Open(m.path("state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { state.Close() }) //nolint:errcheck // of a test
	esp := m.path("esp")
	manager, err := update.New(update.Options{
		Bucket: state.Bucket("updates"), Machine: m, Keys: []bundle.PublicKey{key.Public()},
		Version: v, BuiltUnix: 1, Architecture: "amd64", Log: slog.New(slog.DiscardHandler),
		ReasonFile: m.path("rollback.json"), EFIVars: m.path("efivars"),
		ESP: func(_ disk.Access, fn func(string) error) error { return fn(esp) },
		Root: func() (slot.Root, error) {
			entries, err := slot.Entries(esp)
			if err != nil {
				return slot.Root{}, err
			}
			for _, e := range entries {
				if e.Slot == disk.SlotA {
					return slot.RootOf(esp, e)
				}
			}
			return slot.Root{}, os.ErrNotExist
		},
		Counted: func(disk.Boot) (bool, error) { return false, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return m, manager
}

// The real manager takes a push over a network that breaks again and again: it is
// whole in the end, and what the running slot has is not sent.
func TestPushToManager(t *testing.T) {
	key, err := bundle.Generate()
	if err != nil {
		t.Fatal(err)
	}
	old := make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{1}).Read(old) //nolint:errcheck // never fails
	changed := bytes.Clone(old)
	rand.NewChaCha8([32]byte{2}).Read(changed[1<<20 : 14<<20]) //nolint:errcheck // as above
	m, manager := newFilesMachine(t, "v1.2.3", old, key, 17<<20)
	all, _, root := systemBundle(t, "v1.3.0", changed, key)
	p, notes := pushTo(t, manager, all, func(address string) string {
		cut, err := cutNetwork(address, 6<<20, t.Cleanup) // the manager keeps each 4 MiB
		if err != nil {
			t.Fatal(err)
		}
		return cut
	})
	result, err := p.run(t.Context())
	if err != nil {
		t.Fatalf("%v\n%s", err, notes)
	}
	if result.GetVersion() != "v1.3.0" || result.GetSlot() != disk.SlotB || !result.GetReboots() || m.restarts.Load() != 1 {
		t.Errorf("got %v, %d restarts", result, m.restarts.Load())
	}
	got, err := os.ReadFile(m.path("slot_b"))
	if err != nil || !bytes.Equal(got[:len(root)], root) {
		t.Error("the slot is not the bundle's root", err)
	}
	if p.sent < 13<<20 || p.sent > 26<<20 || p.reused < 3<<20 {
		t.Errorf("sent %d, reused %d", p.sent, p.reused)
	}
	if !strings.Contains(notes.String(), "trying again") {
		t.Error("it does not tell that the network broke")
	}
	for _, phase := range []string{"compare: 100 %", "write: 100 %", "verify: 100 %", "activate: 100 %"} {
		if !strings.Contains(notes.String(), phase) {
			t.Errorf("no %q in:\n%s", phase, notes)
		}
	}
}

// A bundle that the capsule does not trust is no fault of the operator's certificate.
func TestPushOfForeignKey(t *testing.T) {
	own, err := bundle.Generate()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := bundle.Generate()
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 2*bundle.BlockSize)
	_, manager := newFilesMachine(t, "v1.2.3", data, own, 1<<20)
	all, _, _ := systemBundle(t, "v1.3.0", data, foreign)
	p, _ := pushTo(t, manager, all, func(address string) string { return address })
	_, err = p.run(t.Context())
	f := p.app.explain(t.Context(), err)
	if f.code != exitRefused || !strings.Contains(f.Error(), foreign.Public().ID()) || !strings.Contains(f.hint, "keys") {
		t.Errorf("got %d %v (%s)", f.code, f, f.hint)
	}
}
