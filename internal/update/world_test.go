package update

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/bundle"
	"capsule/internal/disk"
	"capsule/internal/slot"
	"capsule/internal/store"
)

const (
	testBlocks = 300     // of data of a root: a tree of two levels
	testSlot   = 2 << 20 // bytes
	testKernel = 300_000 // bytes
)

// build is a system as it's built.
type build struct {
	manifest bundle.Manifest
	kernel   []byte
	data     []byte // of the root
	tree     []byte
}

// content is random blocks that a seed determines.
func content(seed uint64, blocks int) []byte {
	b := make([]byte, blocks*blockSize)
	_, _ = rand.NewChaCha8(sha256.Sum256(binary.LittleEndian.AppendUint64(nil, seed))).Read(b)
	return b
}

func newBuild(t testing.TB, version string, data []byte) *build {
	t.Helper()
	tree, hash, err := bundle.HashTree(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	r := &build{data: data, tree: tree}
	r.kernel = kernelImage(fmt.Sprintf("quiet capsule.verity=%s capsule.verity_offset=%d", hash, len(data)), testKernel, version)
	sum := sha256.Sum256(r.kernel)
	r.manifest = bundle.Manifest{
		Product: bundle.Product, Version: version, Architecture: "amd64", BuiltUnix: 1000,
		UKI:  bundle.Part{Size: int64(len(r.kernel)), SHA256: hex.EncodeToString(sum[:])},
		Root: bundle.Root{Size: int64(len(data) + len(tree)), DataBytes: int64(len(data)), VerityHash: hash},
	}
	return r
}

func (r *build) root() []byte { return append(bytes.Clone(r.data), r.tree...) }

func (r *build) bundle(t testing.TB, key *bundle.PrivateKey) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := bundle.Write(&b, r.manifest, key, bytes.NewReader(r.kernel), bytes.NewReader(r.root())); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// kernelImage is the least that has a section .cmdline.
func kernelImage(cmdline string, size int, seed string) []byte {
	const head, name = 64, 64 + 4 + 20
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(b[1024:])
	copy(b, "MZ")
	le := binary.LittleEndian
	le.PutUint32(b[0x3c:], head)
	copy(b[head:], "PE\x00\x00")
	le.PutUint16(b[head+4:], 0x8664)
	le.PutUint16(b[head+6:], 1) // sections
	copy(b[name:], ".cmdline")
	le.PutUint32(b[name+8:], uint32(len(cmdline)))
	le.PutUint32(b[name+16:], uint32(len(cmdline)))
	le.PutUint32(b[name+20:], 512)
	copy(b[512:], cmdline)
	return b
}

// world is a machine of files.
type world struct {
	t       testing.TB
	dir     string
	key     *bundle.PrivateKey
	store   *store.Store
	running string // version
	built   int64
	begun   time.Time // of this boot

	mu        sync.Mutex
	boot      disk.Boot
	recovery  bool
	addressed bool
	unready   []string
	restarts  int
	told      []string
	events    []string
}

func (w *world) Boot() disk.Boot     { return w.boot }
func (w *world) Normal() bool        { return !w.recovery }
func (w *world) Addressed() bool     { w.mu.Lock(); defer w.mu.Unlock(); return w.addressed }
func (w *world) Reboot(string) error { w.mu.Lock(); defer w.mu.Unlock(); w.restarts++; return nil }
func (w *world) Unready() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.unready)
}

func (w *world) Tell(text string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, text)
	return nil
}

// restarted counts the restarts that were asked for in this boot, heard is what
// process 1 was told, seen are the events.
func (w *world) restarted() (n int) { w.set(func() { n = w.restarts }); return n }
func (w *world) heard() (texts []string) {
	w.set(func() { texts = slices.Clone(w.told) })
	return texts
}
func (w *world) seen() (texts []string) {
	w.set(func() { texts = slices.Clone(w.events) })
	return texts
}

func (w *world) set(fn func()) { w.mu.Lock(); defer w.mu.Unlock(); fn() }

// newWorld runs a release, confirmed, in slot_a. slot_b is empty.
func newWorld(t testing.TB, r *build) *world {
	t.Helper()
	dir := t.TempDir()
	key, err := bundle.Generate()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, key: key, running: r.manifest.Version, built: 1000, addressed: true, begun: time.Now()}
	w.boot = disk.Boot{Slot: disk.SlotA, SlotA: w.path("slot_a"), SlotB: w.path("slot_b")}
	w.write("slot_a", append(r.root(), make([]byte, testSlot-len(r.root()))...))
	w.write("slot_b", make([]byte, testSlot))
	w.write("esp/EFI/capsule/first.efi", r.kernel)
	w.write("esp/loader/loader.conf", []byte("timeout 0\n"))
	w.write("esp/loader/entries/capsule-slot_a.conf", fmt.Appendf(nil, "title Capsule %s\nsort-key capsule\nversion 1\nefi /EFI/capsule/first.efi\n", w.running))
	if w.store, err = store.Open(w.path("state.db")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

func (w *world) close() { _ = w.store.Close() }

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name string, data []byte) {
	w.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(w.path(name)), 0o700), os.WriteFile(w.path(name), data, 0o600)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) read(name string) []byte {
	w.t.Helper()
	b, err := os.ReadFile(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) entries() []slot.Entry {
	w.t.Helper()
	entries, err := slot.Entries(w.path("esp"))
	if err != nil {
		w.t.Fatal(err)
	}
	return entries
}

func (w *world) entry(name string) *slot.Entry {
	for _, e := range w.entries() {
		if e.Slot == name {
			return &e
		}
	}
	return nil
}

// manager as capsuled makes one at its start.
func (w *world) manager() *Manager {
	w.t.Helper()
	m, err := New(Options{
		Bucket: w.store.Bucket("update"), Machine: w, Keys: []bundle.PublicKey{w.key.Public()},
		Version: w.running, BuiltUnix: w.built, Architecture: "amd64", Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
		Event:      func(kind, text string) { w.set(func() { w.events = append(w.events, kind+": "+text) }) },
		ReasonFile: w.path("perm/rollback.json"), EFIVars: w.path("efivars"),
		Uptime: func() time.Duration { return time.Since(w.begun) },
		ESP:    func(_ disk.Access, fn func(string) error) error { return fn(w.path("esp")) },
		Root:   func() (slot.Root, error) { return slot.RootOf(w.path("esp"), *w.entry(w.boot.Slot)) },
		Counted: func(disk.Boot) (bool, error) {
			own, other := w.entry(w.boot.Slot), w.entry(slot.Other(w.boot.Slot))
			return own != nil && own.Counted && other != nil && !other.Exhausted(), nil
		},
		Again: func() (bool, error) { return w.entry(w.boot.Slot).Again, nil },
		Bless: func(disk.Boot) error {
			from := "esp/loader/entries/" + w.entry(w.boot.Slot).File
			return os.Rename(w.path(from), w.path("esp/loader/entries/capsule-"+w.boot.Slot+".conf"))
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.MkdirAll(w.path("perm"), 0o700); err != nil {
		w.t.Fatal(err)
	}
	return m
}

// restart does what the loader does and gives the manager of the system that it
// starts.
func (w *world) restart() *Manager {
	w.t.Helper()
	var best *slot.Entry
	for _, e := range w.entries() {
		if !e.Exhausted() && (best == nil || e.Generation > best.Generation) {
			best = &e
		}
	}
	if best == nil {
		w.t.Fatal("nothing to start")
	}
	if best.Counted {
		name, _, _ := strings.Cut(best.File, "+")
		next := fmt.Sprintf("%s+%d-%d.conf", name, best.Left-1, best.Done+1)
		if err := os.Rename(w.path("esp/loader/entries/"+best.File), w.path("esp/loader/entries/"+next)); err != nil {
			w.t.Fatal(err)
		}
	}
	w.boot.Slot, w.running, w.restarts, w.told, w.events, w.begun = best.Slot, best.Version, 0, nil, nil, time.Now()
	return w.manager()
}

// settled runs the manager until it has nothing to watch any more, or for a moment.
func (w *world) settled(m *Manager) *Manager {
	w.t.Helper()
	if err := m.settle(); err != nil {
		w.t.Fatal(err)
	}
	if err := m.tidy(); err != nil {
		w.t.Fatal(err)
	}
	return m
}

// sums is the content of slots and ESP, by name.
func (w *world) sums() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	for _, top := range []string{"slot_a", "slot_b", "esp"} {
		err := filepath.WalkDir(w.path(top), func(file string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(file)
			out[strings.TrimPrefix(file, w.dir+"/")] = fmt.Sprintf("%x", sha256.Sum256(b))
			return err
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return out
}

// client has a bundle and sends what it's asked for, in pieces and backwards.
type client struct {
	bundle io.ReaderAt
	asked  int64
	breaks int64 // after so many bytes; 0 never
	piece  int64
}

var errBroken = errors.New("connection broken")

func (c *client) fetch(_ context.Context, ranges []Range, got func(int64, []byte) error) error {
	for _, r := range slices.Backward(ranges) {
		for end := r.Offset + r.Length; end > r.Offset; {
			n := min(c.piece, end-r.Offset)
			end -= n
			if c.breaks > 0 && c.asked+n > c.breaks {
				return errBroken
			}
			c.asked += n
			b := make([]byte, n)
			if _, err := c.bundle.ReadAt(b, end); err != nil {
				return err
			}
			if err := got(end, b); err != nil {
				return err
			}
		}
	}
	return nil
}

func clientOf(b []byte) *client { return &client{bundle: bytes.NewReader(b), piece: 100_001} }

func offerOf(t testing.TB, b []byte) Offer {
	t.Helper()
	h, err := bundle.ReadHeader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return Offer{Header: b[:h.UKIAt], Size: int64(len(b))}
}

// push a release with a client of its own.
func (w *world) push(m *Manager, r *build, change func(*Offer)) (*v1.UpdateResult, *client, error) {
	w.t.Helper()
	b := r.bundle(w.t, w.key)
	o, c := offerOf(w.t, b), clientOf(b)
	if change != nil {
		change(&o)
	}
	result, err := m.Push(w.t.Context(), o, c.fetch, nil)
	return result, c, err
}

func (w *world) mustPush(m *Manager, r *build, change func(*Offer)) *client {
	w.t.Helper()
	_, c, err := w.push(m, r, change)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// history as a line for each record, newest first.
func (w *world) history(m *Manager) (out []string) {
	w.t.Helper()
	s, err := m.Status(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range s.History {
		out = append(out, fmt.Sprintf("%s %s from %s: %s: %s", r.Version, r.Slot, r.FromVersion,
			strings.ToLower(strings.TrimPrefix(r.Outcome.String(), "UPDATE_OUTCOME_")), r.Reason))
	}
	return out
}

func (w *world) wantHistory(m *Manager, want ...string) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.history(m)); diff != "" {
		w.t.Errorf("history (-want +got):\n%s", diff)
	}
}
