package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/store"
)

const password = "correct horse battery staple"

// world is a store with a book.
type world struct {
	dir   string
	store *store.Store
	*Book
}

func newWorld(t *testing.T, tpm TPM) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	st, err := store.Open(filepath.Join(w.dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	w.store = st
	w.reopen(tpm)
	return w
}

// reopen is a restart of the daemon.
func (w *world) reopen(tpm TPM) { w.Book = Open(w.store, w.keyFile(), tpm) }

func (w *world) keyFile() string { return filepath.Join(w.dir, "secret.keys") }

func (w *world) apply(t *testing.T, objs ...*v1.Object) (results []*v1.ApplyResult, notes map[string][]string) {
	t.Helper()
	err := w.Seal(objs, false, func() (err error) {
		results, err = w.store.Apply(t.Context(), objs, false, func(tx store.View, objs []*v1.Object) (err error) {
			notes, err = w.Admit(tx, objs)
			return err
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return results, notes
}

func secretOf(name string, data map[string]string) *v1.Object {
	return &v1.Object{
		Meta: &v1.Meta{Kind: manifest.KindSecret, Name: name},
		Kind: &v1.Object_Secret{Secret: &v1.Secret{Spec: &v1.SecretSpec{Data: data}}},
	}
}

func workloadOf(name string, change ...func(*v1.WorkloadSpec)) *v1.Object {
	spec := &v1.WorkloadSpec{Image: "web:1", SecretEnv: map[string]string{"PASSWORD": "db/password"}}
	for _, fn := range change {
		fn(spec)
	}
	obj := &v1.Object{Meta: &v1.Meta{Kind: "Container", Name: name}, Kind: &v1.Object_Workload{Workload: &v1.Workload{Spec: spec}}}
	manifest.Default(obj)
	return obj
}

func (w *world) wants(t *testing.T, ref, value string) {
	t.Helper()
	if got, err := w.Value(ref); err != nil || string(got) != value {
		t.Errorf("%s is %q, %v; want %q", ref, got, err, value)
	}
}

func (w *world) heldAs(t *testing.T, ref, text string) {
	t.Helper()
	_, err := w.Value(ref)
	if !errors.As(err, new(*HeldError)) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v, want it held with %q", ref, err, text)
	}
}

func (w *world) generation(t *testing.T, kind, name string) uint64 {
	t.Helper()
	obj, err := w.store.Get(kind, name)
	if err != nil {
		t.Fatal(err)
	}
	return obj.Meta.Generation
}

// clean fails when a file of the world's folder holds the text.
func (w *world) clean(t *testing.T, text string) {
	t.Helper()
	if err := w.store.Copy(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(w.dir)
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(w.dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte(text)) {
			t.Errorf("%s holds %q", f.Name(), text)
		}
	}
}

func TestKeptSealed(t *testing.T) {
	w := newWorld(t, noTPM)
	w.apply(t, secretOf("db", map[string]string{"password": password, "empty": ""}))
	w.wants(t, "db/password", password)
	w.wants(t, "db/empty", "")
	w.reopen(noTPM)
	w.wants(t, "db/password", password)
	w.clean(t, password)
	info, err := os.Stat(w.keyFile())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file of the keys: %v, %v", info, err)
	}
	w.heldAs(t, "db/user", `secret "db" has no key "user"; it has empty, password`)
	w.heldAs(t, "mail/password", `secret "mail" is not declared`)
	if _, err := w.Value("db"); err == nil || errors.As(err, new(*HeldError)) {
		t.Errorf("no reference: %v", err)
	}
}

// What is the same stays the same to the byte: its generation does not grow, and
// nothing starts anew.
func TestApplyTwice(t *testing.T) {
	w := newWorld(t, noTPM)
	first, _ := w.apply(t, secretOf("db", map[string]string{"password": password, "user": "ann"}))
	again, _ := w.apply(t, secretOf("db", map[string]string{"password": password, "user": "ann"}))
	if again[0].Outcome != v1.Outcome_OUTCOME_UNCHANGED {
		t.Errorf("the same again is %v", again[0].Outcome)
	}
	changed, _ := w.apply(t, secretOf("db", map[string]string{"password": password, "user": "bob"}))
	before, after := first[0].Object.GetSecret().Sealed.Values, changed[0].Object.GetSecret().Sealed.Values
	if !bytes.Equal(before["password"], after["password"]) || bytes.Equal(before["user"], after["user"]) {
		t.Errorf("one value was changed: %x, %x", before, after)
	}
	if changed[0].Outcome != v1.Outcome_OUTCOME_CHANGED || w.generation(t, manifest.KindSecret, "db") != 2 {
		t.Errorf("a change is %v", changed[0].Outcome)
	}
	w.wants(t, "db/user", "bob")
}

// A dry run leaves nothing, not even a key.
func TestDryRun(t *testing.T) {
	w := newWorld(t, noTPM)
	objs := []*v1.Object{secretOf("db", map[string]string{"password": password})}
	err := w.Seal(objs, true, func() error {
		_, err := w.store.Apply(t.Context(), objs, true, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(w.keyFile()); err == nil {
		t.Error("it made a key")
	}
	w.heldAs(t, "db/password", "is not declared")
}

// A value in another's place on the disk does not open.
func TestMovedValue(t *testing.T) {
	w := newWorld(t, noTPM)
	w.apply(t, secretOf("db", map[string]string{"password": password, "user": "ann"}), secretOf("mail", map[string]string{"password": "x"}))
	other, err := w.store.Get(manifest.KindSecret, "mail")
	if err != nil {
		t.Fatal(err)
	}
	for name, fn := range map[string]func(*v1.SealedSecret){
		"of another key":    func(s *v1.SealedSecret) { s.Values["user"] = s.Values["password"] },
		"of another secret": func(s *v1.SealedSecret) { s.Values["user"] = other.GetSecret().Sealed.Values["password"] },
		"changed":           func(s *v1.SealedSecret) { s.Values["user"][30] ^= 1 },
		"short":             func(s *v1.SealedSecret) { s.Values["user"] = []byte("short") },
	} {
		t.Run(name, func(t *testing.T) {
			err := w.store.Rewrite(manifest.KindSecret, func(o *v1.Object) {
				if o.Meta.Name == "db" {
					fn(o.GetSecret().Sealed)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			w.heldAs(t, "db/user", `can't be opened: its value "user" is damaged; declare it again`)
			w.apply(t, secretOf("db", map[string]string{"password": password, "user": "ann"}))
			w.wants(t, "db/user", "ann")
		})
	}
}

func TestShown(t *testing.T) {
	w := newWorld(t, noTPM)
	w.apply(t, secretOf("db", map[string]string{"password": password}), workloadOf("web"), workloadOf("none", func(s *v1.WorkloadSpec) { s.SecretEnv = nil }))
	all, err := w.store.List("")
	if err != nil {
		t.Fatal(err)
	}
	shown, err := w.Show(all...)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range shown {
		if o.GetMeta().GetKind() != manifest.KindSecret {
			continue
		}
		want := &v1.Secret{Spec: &v1.SecretSpec{Data: map[string]string{"password": manifest.Hidden}}, Status: &v1.SecretStatus{Users: []string{"web"}}}
		if diff := cmp.Diff(want, o.GetSecret(), protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
		if err := manifest.Validate(o); err == nil || !strings.Contains(err.Error(), "give the value") {
			t.Errorf("what is shown can be applied: %v", err)
		}
	}
}

// A change starts anew those that use what changed, and no others.
func TestRestarts(t *testing.T) {
	w := newWorld(t, noTPM)
	file := func(s *v1.WorkloadSpec) {
		s.SecretEnv, s.Files = nil, []*v1.File{{Path: "/p", Secret: "db/password"}}
	}
	workloads := []*v1.Object{
		workloadOf("env"), workloadOf("file", file),
		workloadOf("user", func(s *v1.WorkloadSpec) { s.SecretEnv["PASSWORD"] = "db/user" }),
		workloadOf("policy", func(s *v1.WorkloadSpec) { s.OnSecretChange = manifest.OnSecretChangeNone }),
		workloadOf("never", func(s *v1.WorkloadSpec) { s.Restart = "never" }),
		workloadOf("stopped"), workloadOf("done", func(s *v1.WorkloadSpec) { s.Restart = "on-failure" }),
		workloadOf("applied"), workloadOf("same"),
	}
	w.apply(t, append(workloads, secretOf("db", map[string]string{"password": password, "user": "ann"}))...)
	if _, err := w.store.Mutate("stopped", "stopped", func(o *v1.Object) error {
		o.GetWorkload().Intent = &v1.Intent{Stopped: true}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	done, err := w.store.Get("", "done")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.store.PutStatus(done.Meta.Uid, &v1.WorkloadStatus{Generation: 1, Phase: v1.Phase_PHASE_EXITED}); err != nil {
		t.Fatal(err)
	}
	results, notes := w.apply(t, secretOf("db", map[string]string{"password": "another", "user": "ann"}),
		workloadOf("applied", func(s *v1.WorkloadSpec) { s.Image = "web:2" }), workloadOf("same"))
	for name, want := range map[string]uint64{
		"env": 2, "file": 2, "user": 1, "policy": 1, "never": 1, "stopped": 2, "done": 1, "applied": 2, "same": 2,
	} {
		if got := w.generation(t, "", name); got != want {
			t.Errorf("%s is at generation %d, want %d", name, got, want)
		}
	}
	if got := results[2].Object.Meta.Generation; got != 2 {
		t.Errorf("who waits for it is told of generation %d", got)
	}
	want := []string{`workload "env" uses it and starts anew`, `workload "file" uses it and starts anew`, `workload "same" uses it and starts anew`}
	if diff := cmp.Diff(want, notes[results[0].Object.Meta.Uid]); diff != "" {
		t.Error(diff)
	}
}

func TestMissingIsSaid(t *testing.T) {
	w := newWorld(t, noTPM)
	w.apply(t, secretOf("mail", map[string]string{"user": "ann"}))
	results, notes := w.apply(t, workloadOf("web", func(s *v1.WorkloadSpec) { s.SecretEnv["MAIL"] = "mail/password" }))
	want := []string{`it waits for secret "db", which is not declared`, `it waits for secret "mail", which has no key "password"`}
	if diff := cmp.Diff(want, notes[results[0].Object.Meta.Uid]); diff != "" {
		t.Error(diff)
	}
}

func (w *world) unlock(t *testing.T) {
	t.Helper()
	if err := w.Unlock(); err != nil {
		t.Fatal(err)
	}
}

func (w *world) state(t *testing.T, want string) {
	t.Helper()
	if got := w.State(); !strings.Contains(got, want) {
		t.Errorf("state %q, want %q", got, want)
	}
}

// keys are the entries of the file.
func (w *world) entries(t *testing.T) (list []entry) {
	t.Helper()
	text, err := os.ReadFile(w.keyFile())
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestTPMBoundKey(t *testing.T) {
	tpm := softwareTPM(t)
	w := newWorld(t, tpm.open)
	w.state(t, "no secret was declared yet")
	w.apply(t, secretOf("db", map[string]string{"password": password}))
	w.state(t, "key sealed to the TPM")
	if e := w.entries(t); len(e) != 1 || e[0].Plain != nil || e[0].TPM == nil {
		t.Errorf("the file holds %+v", e)
	}
	w.reopen(tpm.open)
	w.unlock(t)
	w.wants(t, "db/password", password)

	// The disk in another machine, without a TPM or with another one.
	w.reopen(noTPM)
	w.unlock(t)
	w.heldAs(t, "db/password", "its key is bound to a TPM, and the machine has no TPM 2.0; declare it again")
	w.state(t, "can't be opened")
	tpm.clear(t)
	w.reopen(tpm.open)
	w.unlock(t)
	w.heldAs(t, "db/password", "the TPM did not seal it, or was cleared since; declare it again")

	// Declared again, all is well, and the lost key is forgotten.
	results, _ := w.apply(t, secretOf("db", map[string]string{"password": password}))
	if results[0].Outcome != v1.Outcome_OUTCOME_CHANGED {
		t.Errorf("it is %v", results[0].Outcome)
	}
	w.wants(t, "db/password", password)
	w.reopen(tpm.open)
	w.unlock(t)
	w.state(t, "key sealed to the TPM")
	if e := w.entries(t); len(e) != 1 {
		t.Errorf("%d keys are kept", len(e))
	}
}

// A TPM that is switched on later takes the key from the disk, with no change of what
// is declared; wherever that is cut off, all opens.
func TestTPMComesLater(t *testing.T) {
	tpm := softwareTPM(t)
	w := newWorld(t, noTPM)
	w.apply(t, secretOf("db", map[string]string{"password": password}), secretOf("mail", map[string]string{"user": "ann"}))
	w.state(t, "key on the disk: the machine has no TPM 2.0")
	plain := w.entries(t)[0]
	w.reopen(tpm.open)
	if rebound, err := w.keys.rebind(); !rebound || err != nil { // and the power is cut
		t.Fatal(rebound, err)
	}
	w.reopen(tpm.open)
	w.wants(t, "db/password", password)
	w.unlock(t)
	w.wants(t, "db/password", password)
	w.wants(t, "mail/user", "ann")
	e := w.entries(t)
	if len(e) != 1 || e[0].TPM == nil || e[0].ID == plain.ID {
		t.Errorf("the file holds %+v", e)
	}
	if got := w.generation(t, manifest.KindSecret, "db"); got != 1 {
		t.Errorf("generation %d", got)
	}
	copied, err := store.OpenCopy(filepath.Join(w.dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	b := Open(copied, w.keyFile(), tpm.open)
	if got, err := b.Value("db/password"); err != nil || string(got) != password {
		t.Errorf("the store's copy gives %q, %v", got, err)
	}
}

// A file of keys that is damaged holds what needs them, and is kept aside when a
// secret is declared again.
func TestDamagedKeys(t *testing.T) {
	w := newWorld(t, noTPM)
	w.apply(t, secretOf("db", map[string]string{"password": password}))
	if err := os.WriteFile(w.keyFile(), []byte("rot"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.reopen(noTPM)
	w.unlock(t)
	w.state(t, "the machine's keys are damaged")
	w.heldAs(t, "db/password", "the machine's keys are damaged")
	w.apply(t, secretOf("db", map[string]string{"password": password}))
	w.wants(t, "db/password", password)
	if _, err := os.Stat(w.keyFile() + ".damaged"); err != nil {
		t.Error(err)
	}
	if err := os.Remove(w.keyFile()); err != nil {
		t.Fatal(err)
	}
	w.reopen(noTPM)
	w.heldAs(t, "db/password", "the key that sealed it is lost; declare it again")
}
