//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/bundle"
	"capsule/internal/server"
	"capsule/internal/update"
)

// testUpdates is an update manager without disks: slots are memory, and a restart
// is a few answers that the capsule is not there. What becomes of a version stands
// in its name: "broken" never comes up, the answer to a push of "lost" is lost, and
// "stuck" breaks off before anything is written.
type testUpdates struct {
	pushing sync.Mutex

	mu       sync.Mutex
	status   *capsulev1.UpdateServiceStatusResponse
	restarts int             // looks until it is back
	held     map[string]bool // hashes of blocks that are in a slot
	back     map[string]bool // versions that were rolled back
}

func newTestUpdates(running, other string) *testUpdates {
	return &testUpdates{
		held: map[string]bool{}, back: map[string]bool{},
		status: &capsulev1.UpdateServiceStatusResponse{
			Version: running, Slot: "slot_a", Other: &capsulev1.OtherSystem{Version: other, Slot: "slot_b"},
		},
	}
}

// testBlock is the unit that is looked for in the slots.
const testBlock = 64 << 10

func (u *testUpdates) Push(ctx context.Context, o update.Offer, fetch update.Fetch, progress func(*capsulev1.UpdateProgress)) (*capsulev1.UpdateResult, error) {
	if !u.pushing.TryLock() {
		return nil, fmt.Errorf("another update is being pushed, or a rollback begins: %w", errdefs.ErrFailedPrecondition)
	}
	defer u.pushing.Unlock()
	h, err := bundle.ParseHeader(o.Header)
	if err != nil {
		return nil, err
	}
	v := h.Manifest.Version
	if unchanged, err := u.refuse(h, o); unchanged || err != nil {
		return &capsulev1.UpdateResult{Version: v, Slot: u.status.GetSlot(), Unchanged: unchanged}, err
	}
	if strings.Contains(v, "stuck") {
		progress(&capsulev1.UpdateProgress{Phase: capsulev1.UpdatePhase_UPDATE_PHASE_COMPARE, Done: 1, Total: 1})
		return nil, fmt.Errorf("connection error: reading from server: EOF: %w", errdefs.ErrUnavailable)
	}
	if err := u.write(ctx, h, fetch, progress); err != nil {
		return nil, err
	}
	result := u.install(v, o)
	if strings.Contains(v, "lost") {
		return nil, fmt.Errorf("connection error: reading from server: EOF: %w", errdefs.ErrUnavailable)
	}
	return result, nil
}

func (u *testUpdates) refuse(h *bundle.Header, o update.Offer) (unchanged bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	v := h.Manifest.Version
	switch {
	case h.Manifest.Product != bundle.Product:
		return false, fmt.Errorf("the bundle is for product %q: %w", h.Manifest.Product, errdefs.ErrInvalidArgument)
	case h.Size > o.Size:
		return false, fmt.Errorf("the bundle is cut off: %w", errdefs.ErrInvalidArgument)
	case v == u.status.GetVersion():
		return true, nil
	case u.status.GetTentative() != nil:
		return false, fmt.Errorf("%s is not confirmed yet: confirm it or roll it back first: %w", u.status.GetVersion(), errdefs.ErrFailedPrecondition)
	case v < u.status.GetVersion() && !o.AllowDowngrade:
		return false, fmt.Errorf("%s is older than %s: --allow-downgrade accepts it: %w", v, u.status.GetVersion(), errdefs.ErrFailedPrecondition)
	case u.back[v] && !o.Force:
		return false, fmt.Errorf("%s was rolled back here: --force tries it again: %w", v, errdefs.ErrFailedPrecondition)
	}
	return false, nil
}

// write fetches each block that no slot has, and checks all.
func (u *testUpdates) write(ctx context.Context, h *bundle.Header, fetch update.Fetch, progress func(*capsulev1.UpdateProgress)) error {
	var want []update.Range
	var reused int64
	name := func(at int64) string { return fmt.Sprint(h.Manifest.Root.VerityHash, at) }
	for at := h.UKIAt; at < h.Size; at += testBlock {
		r := update.Range{Offset: at, Length: min(testBlock, h.Size-at)}
		if u.held[name(at)] {
			reused += r.Length
		} else {
			want = append(want, r)
		}
	}
	var done int64
	total := h.Size - h.UKIAt - reused
	tell := func() {
		progress(&capsulev1.UpdateProgress{Phase: capsulev1.UpdatePhase_UPDATE_PHASE_WRITE, Done: done, Total: total, Reused: reused})
	}
	tell()
	for len(want) > 0 {
		n := min(len(want), 8)
		err := fetch(ctx, want[:n], func(offset int64, data []byte) error {
			// Each block is its place and the version, see bundleContent.
			if got := data[0]; got != blockOf(h.Manifest.Version, (offset-h.UKIAt)/testBlock) {
				return fmt.Errorf("block at %d is not the one that was signed: %w", offset, errdefs.ErrDataLoss)
			}
			u.held[name(offset)] = true
			done += int64(len(data))
			return nil
		})
		if err != nil {
			return err
		}
		want = want[n:]
		tell()
	}
	return nil
}

// install records a version, and restarts with it.
func (u *testUpdates) install(v string, o update.Offer) *capsulev1.UpdateResult {
	u.mu.Lock()
	defer u.mu.Unlock()
	old := u.status
	record := &capsulev1.UpdateRecord{Version: v, Slot: old.GetOther().GetSlot(), FromVersion: old.GetVersion(), Time: timestamppb.Now(), Outcome: capsulev1.UpdateOutcome_UPDATE_OUTCOME_INSTALLED}
	old.History = append([]*capsulev1.UpdateRecord{record}, old.GetHistory()...)
	if o.NoReboot {
		return &capsulev1.UpdateResult{Version: v, Slot: record.GetSlot()}
	}
	u.restarts = 2
	if strings.Contains(v, "broken") {
		record.Outcome, record.Ended, record.Reason = capsulev1.UpdateOutcome_UPDATE_OUTCOME_ROLLED_BACK, timestamppb.Now(), "the API was not up within 3m0s"
		u.back[v] = true
		return &capsulev1.UpdateResult{Version: v, Slot: record.GetSlot(), Reboots: true}
	}
	record.Outcome = capsulev1.UpdateOutcome_UPDATE_OUTCOME_TENTATIVE
	window := 10 * time.Minute
	if o.Window > 0 {
		window = o.Window
	}
	u.status = &capsulev1.UpdateServiceStatusResponse{
		Version: v, Slot: record.GetSlot(), History: old.GetHistory(), Tentative: &capsulev1.TentativeSystem{Left: durationpb.New(window)},
		Other: &capsulev1.OtherSystem{Version: old.GetVersion(), Slot: old.GetSlot()},
	}
	if o.AutoConfirm > 0 {
		u.status.Tentative.ConfirmsIn = durationpb.New(o.AutoConfirm)
		u.status.Tentative.Problems = []string{`workload "web" is starting`}
	}
	return &capsulev1.UpdateResult{Version: v, Slot: record.GetSlot(), Reboots: true}
}

func (u *testUpdates) Confirm(context.Context) (*capsulev1.UpdateServiceConfirmResponse, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	before := u.status.GetTentative() == nil
	if !before {
		u.status.Tentative = nil
		r := u.status.GetHistory()[0]
		r.Outcome, r.Ended, r.Reason = capsulev1.UpdateOutcome_UPDATE_OUTCOME_CONFIRMED, timestamppb.Now(), "by the operator"
	}
	return &capsulev1.UpdateServiceConfirmResponse{Version: u.status.GetVersion(), Unchanged: before}, nil
}

func (u *testUpdates) Rollback(context.Context) (*capsulev1.UpdateServiceRollbackResponse, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.status
	if s.GetOther() == nil {
		return nil, fmt.Errorf("the other slot has no system: %w", errdefs.ErrFailedPrecondition)
	}
	u.status = &capsulev1.UpdateServiceStatusResponse{Version: s.GetOther().GetVersion(), Slot: s.GetOther().GetSlot(), History: s.GetHistory()}
	return &capsulev1.UpdateServiceRollbackResponse{Version: s.GetOther().GetVersion(), Slot: s.GetOther().GetSlot()}, nil
}

func (u *testUpdates) Status(context.Context) (*capsulev1.UpdateServiceStatusResponse, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.restarts > 0 {
		u.restarts--
		return nil, fmt.Errorf("connection error: refused: %w", errdefs.ErrUnavailable)
	}
	return u.status, nil
}

func (u *testUpdates) Tentative() *capsulev1.TentativeSystem {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.status.GetTentative()
}

// blockOf is the first byte of each block of a version's bundle.
func blockOf(v string, block int64) byte {
	return sha256.Sum256([]byte(fmt.Sprint(v, block)))[0]
}

// testBundle is a bundle whose blocks tell what they are of.
func testBundle(v, product string, bytesOfData int64) ([]byte, error) {
	m := bundle.Manifest{
		Product: product, Version: v, Architecture: "amd64", UKI: bundle.Part{Size: 5000, SHA256: hex.EncodeToString(make([]byte, 32))},
		Root: bundle.Root{Size: bytesOfData + bundle.TreeSize(bytesOfData), DataBytes: bytesOfData},
	}
	sum := sha256.Sum256([]byte(v))
	m.Root.VerityHash = hex.EncodeToString(sum[:])
	h, err := bundle.NewHeader(m, nil)
	if err != nil {
		return nil, err
	}
	content := make([]byte, h.Size-h.UKIAt)
	rand.NewChaCha8(sum).Read(content) //nolint:errcheck // never fails
	for at := 0; at < len(content); at += testBlock {
		content[at] = blockOf(v, int64(at/testBlock))
	}
	return append(h.Bytes(), content...), nil
}

// makeBundle writes a bundle: bundle FILE VERSION KIB [PRODUCT].
func makeBundle(ts *testscript.TestScript, _ bool, args []string) {
	kib, err := strconv.ParseInt(args[2], 10, 64)
	ts.Check(err)
	data, err := testBundle(args[1], append(args, bundle.Product)[3], kib<<10)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o644))
}

// serveBundles serves a folder by servers of several manners, by the variable that
// has their address: one that knows ranges, one that does not, one that breaks off,
// and one that has another file each time.
func serveBundles(dir string, defers func(func())) map[string]string {
	files := http.FileServer(http.Dir(dir))
	var changes int
	var mu sync.Mutex
	addresses := map[string]string{}
	for name, handler := range map[string]http.HandlerFunc{
		"WEB": files.ServeHTTP,
		"PLAINWEB": func(w http.ResponseWriter, r *http.Request) {
			data, err := os.ReadFile(filepath.Join(dir, r.URL.Path))
			if err != nil {
				http.NotFound(w, r)
				return
			}
			w.Write(data) //nolint:errcheck // its taker sees
		},
		"CUTWEB": func(w http.ResponseWriter, r *http.Request) {
			files.ServeHTTP(&cutWriter{w, 100 << 10}, r)
		},
		"OTHERWEB": func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			changes++
			w.Header().Set("ETag", fmt.Sprintf(`"%d"`, changes))
			files.ServeHTTP(w, r)
		},
	} {
		server := httptest.NewServer(handler)
		defers(server.Close)
		addresses[name] = server.URL
	}
	return addresses
}

// cutWriter breaks an answer off.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (w *cutWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		w.ResponseWriter.Write(p[:w.left]) //nolint:errcheck // as above
		panic(http.ErrAbortHandler)
	}
	w.left -= len(p)
	return w.ResponseWriter.Write(p)
}

// pushTo gives a push of a bundle to a capsule, and what it tells.
func pushTo(t *testing.T, updates server.Updates, data []byte, network func(address string) string) (*updatePush, *bytes.Buffer) {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	c, err := startCapsule(t.TempDir(), updates, t.Cleanup)
	if err != nil {
		t.Fatal(err)
	}
	c.address = network(c.address)
	if err := c.save(filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "capsule"), "test", capsulev1.Role_ROLE_ADMIN); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bundle")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := openBundleFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.close)
	notes := &bytes.Buffer{}
	a := &app{capsule: "test", output: formatTable, ui: &ui{out: notes, err: notes}}
	t.Cleanup(a.close)
	before, err := fetchUpdateStatus(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return &updatePush{
		app: a, client: a.client, source: source, meter: &meter{line: statusLine{ui: a.ui}},
		offer: UpdatePushOptions{}.offer(source), before: before, patience: updatePatience,
	}, notes
}

// A push that does not get on ends, with the cause and what to do.
func TestPushGivesUp(t *testing.T) {
	data, err := testBundle("v1.9.0-stuck", bundle.Product, 2*bundle.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	p, notes := pushTo(t, nil, data, func(address string) string { return address })
	p.patience = 400 * time.Millisecond
	_, err = p.run(t.Context())
	var f *failure
	if !errors.As(err, &f) || !strings.Contains(f.Error(), "did not get on for 400ms: capsule \"test\"") || !strings.Contains(f.hint, "run it again") {
		t.Errorf("got %v", err)
	}
	if n := strings.Count(notes.String(), "trying again"); n != 1 || p.tries < 2 {
		t.Errorf("%d tries, told of %d:\n%s", p.tries, n, notes.String())
	}
}

func TestUpdateWaitJudges(t *testing.T) {
	record := func(v, slot string, outcome capsulev1.UpdateOutcome, reason string) *capsulev1.UpdateRecord {
		return &capsulev1.UpdateRecord{Version: v, Slot: slot, Outcome: outcome, Reason: reason}
	}
	const (
		installed  = capsulev1.UpdateOutcome_UPDATE_OUTCOME_INSTALLED
		confirmed  = capsulev1.UpdateOutcome_UPDATE_OUTCOME_CONFIRMED
		rolledBack = capsulev1.UpdateOutcome_UPDATE_OUTCOME_ROLLED_BACK
	)
	for name, c := range map[string]struct {
		slot    string
		history []*capsulev1.UpdateRecord
		want    string
	}{
		"not down yet":         {"slot_a", []*capsulev1.UpdateRecord{record("v2", "slot_b", installed, "")}, "wait"},
		"no history":           {"slot_a", nil, "wait"},
		"runs":                 {"slot_b", []*capsulev1.UpdateRecord{record("v2", "slot_b", installed, "")}, "back"},
		"came back":            {"slot_a", []*capsulev1.UpdateRecord{record("v2", "slot_b", rolledBack, "no network")}, "v2 was rolled back, and the capsule runs v1 again: no network"},
		"came back, unknown":   {"slot_a", []*capsulev1.UpdateRecord{record("v2", "slot_b", rolledBack, "")}, "v2 was rolled back, and the capsule runs v1 again: the reason is not known"},
		"came back before":     {"slot_a", []*capsulev1.UpdateRecord{record("v2", "slot_b", installed, ""), record("v2", "slot_b", rolledBack, "no network")}, "wait"},
		"another came back":    {"slot_a", []*capsulev1.UpdateRecord{record("v2", "slot_b", installed, ""), record("v3", "slot_b", rolledBack, "x")}, "wait"},
		"same in another slot": {"slot_a", []*capsulev1.UpdateRecord{record("v2", "slot_b", installed, ""), record("v2", "slot_a", confirmed, "")}, "wait"},
	} {
		w := &updateWait{result: &capsulev1.UpdateResult{Version: "v2", Slot: "slot_b"}}
		back, err := w.judge(&capsulev1.UpdateServiceStatusResponse{Version: "v1", Slot: c.slot, History: c.history})
		got := map[bool]string{true: "back", false: "wait"}[back]
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestSkew(t *testing.T) {
	for _, c := range []struct{ mine, capsules, want string }{
		{"v1.4.0", "v1.4.9", ""},
		{"1.4.0", "v1.4.0-12-g1a2b3c4-dirty", ""},
		{"v1.4.0", "v1.3.2", "one minor version apart, which works"},
		{"v1.3.0", "v1.4.0+build.5", "one minor version apart, which works"},
		{"v1.5.0", "v1.3.2", "Use a capsulectl of 1.3"},
		{"v2.3.0", "v1.3.0", "which is not supported"},
		{"v2.0.0", "v1.1.0", "which is not supported"},
		{"a0bc083", "v1.3.2", ""},
		{"v1.3.2", "a0bc083-dirty", ""},
		{"0.0.0-dev", "v1.3.2", ""},
		{"v1.3", "v1.5.0", ""},
		{"v1.03.0", "v1.5.0", ""},
		{"", "", ""},
	} {
		got := skew(c.mine, c.capsules)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s and %s: %q", c.mine, c.capsules, got)
		}
	}
}

// Without a terminal a step of any number of bytes is a line each tenth.
func TestMeter(t *testing.T) {
	var out bytes.Buffer
	m := &meter{line: statusLine{ui: &ui{err: &out}}}
	for done := int64(0); done <= 1000; done++ {
		m.set("write", done, 1000, "")
	}
	m.set("verify", 7, 7, "3 B reused")
	m.note("between")
	m.set("verify", 8, 7, "")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 14 || lines[1] != "write: 10 %, 100 B of 1000 B" || lines[11] != "verify: 100 %, 7 B of 7 B, 3 B reused" || lines[12] != "between" {
		t.Errorf("%d lines:\n%s", len(lines), out.String())
	}
	out.Reset()
	m.line.ui.errMoves = true
	m.set("write", 1, 3, "")
	m.set("write", 2, 3, "")
	m.end()
	if want := "\r\x1b[Kwrite: 33 %, 1 B of 3 B\r\x1b[Kwrite: 66 %, 2 B of 3 B\r\x1b[K"; out.String() != want {
		t.Errorf("got %q", out.String())
	}
}
