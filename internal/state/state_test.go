package state

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-tpm/tpm2/transport"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/backup"
	"capsule/internal/identity"
	"capsule/internal/secret"
	"capsule/internal/store"
	"capsule/internal/volume"
)

func noTPM() (transport.TPMCloser, error) { return nil, errors.New("no TPM in tests") }

// disks are volumes in memory.
type disks struct {
	all     map[string][]byte
	waiting []string
}

func (d *disks) Kept() (all []volume.Kept, waiting []string, err error) {
	for _, name := range []string{"photos", "wiki"} {
		if data, ok := d.all[name]; ok {
			all = append(all, volume.Kept{Name: name, Size: int64(len(data))})
		}
	}
	return all, d.waiting, nil
}

func (d *disks) Blocks(_ context.Context, name string, read func(volume.Kept, io.Reader) error) error {
	return read(volume.Kept{Name: name, Size: int64(len(d.all[name]))}, bytes.NewReader(d.all[name]))
}

func (d *disks) Fill(_ context.Context, v volume.Kept, next func() (int64, []byte, error)) error {
	disk := make([]byte, v.Size)
	for {
		at, data, err := next()
		if errors.Is(err, io.EOF) {
			d.all[v.Name] = disk
			return nil
		}
		if err != nil {
			return err
		}
		copy(disk[at:], data)
	}
}

// capsule is one with a secret, two volumes and an operator.
type capsule struct {
	*Source
	perm  string
	disks *disks
	id    *identity.Identity
}

const mib = 1 << 20

func newCapsule(t *testing.T) *capsule {
	t.Helper()
	perm := t.TempDir()
	ca, err := identity.NewCA("box")
	check(t, err)
	pair, err := ca.IssueOperator("anna", v1.Role_ROLE_ADMIN, time.Hour)
	check(t, err)
	seed, err := ca.SeedPEM(pair.CertPEM)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(perm, "seed.pem"), seed, 0o600))
	id, err := identity.Load(filepath.Join(perm, identityDir), filepath.Join(perm, "seed.pem"))
	check(t, err)
	st, err := store.Open(filepath.Join(perm, storeFile))
	check(t, err)
	t.Cleanup(func() { st.Close() })
	book := secret.Open(st, filepath.Join(perm, keysFile), noTPM)
	check(t, book.Put(t.Context(), "db", "password", []byte("precious")))
	for _, name := range []string{"photos", "wiki"} {
		_, err := st.Apply(t.Context(), []*v1.Object{{
			Meta: &v1.Meta{Kind: "Volume", Name: name}, Kind: &v1.Object_Volume{Volume: &v1.Volume{Spec: &v1.VolumeSpec{Size: 64 * mib}}},
		}}, false, nil)
		check(t, err)
	}
	check(t, st.Bucket("updates").Put("slot", []byte("b")))
	d := &disks{all: map[string][]byte{"photos": make([]byte, 8*mib), "wiki": make([]byte, 4*mib)}}
	copy(d.all["photos"][mib:], bytes.Repeat([]byte("photo"), 200_000))
	copy(d.all["wiki"][3*mib:], "text")
	c := &capsule{perm: perm, disks: d, id: id, Source: &Source{
		Store: st, Secrets: book, Volumes: d, Identity: filepath.Join(perm, identityDir), Temp: perm, Perm: perm,
		Header: func() *v1.BackupHeader {
			return &v1.BackupHeader{Version: "v1.2.3", Name: "box", MachineId: strings.Repeat("a", 32), Fingerprint: id.Fingerprint()}
		},
	}}
	return c
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func nothing() *backup.Known {
	return &backup.Known{Receive: func() (*v1.BackupKnown, error) { return nil, io.EOF }}
}

// saved is a backup with its volumes.
func (c *capsule) saved(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	check(t, c.Write(t.Context(), &out, Order{Volumes: true, Known: nothing()}))
	return out.Bytes()
}

// withoutChunks is what the client gives to a stick.
func withoutChunks(t *testing.T, saved []byte) []byte {
	t.Helper()
	r, err := backup.NewReader(bytes.NewReader(saved))
	check(t, err)
	var out bytes.Buffer
	w, err := backup.NewWriter(&out, r.Header())
	check(t, err)
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		check(t, err)
		switch rec.GetRecord().(type) {
		case *v1.BackupRecord_File, *v1.BackupRecord_Data:
			check(t, w.Put(rec))
		}
	}
	_, err = w.End()
	check(t, err)
	return out.Bytes()
}

func anyVersion(string) bool { return true }

// A capsule, its backup, a stick, a new disk: the same identity and operators, the
// same objects, secrets that open, and volumes that wait, then have their data.
func TestThereAndBack(t *testing.T) {
	c := newCapsule(t)
	saved := c.saved(t)
	stage := &Stage{Dir: filepath.Join(t.TempDir(), "restore"), Follows: anyVersion}
	staged, err := stage.Take(bytes.NewReader(withoutChunks(t, saved)), false)
	check(t, err)
	if again, err := stage.Get(staged.Digest); err != nil || again != staged {
		t.Fatal(again, err)
	}
	esp := filepath.Join(t.TempDir(), "restore")
	text, err := os.ReadFile(staged.File)
	check(t, err)
	check(t, os.WriteFile(esp, text, 0o600))

	perm := t.TempDir()
	check(t, os.Mkdir(filepath.Join(perm, identityDir), 0o700)) // as process 1 does
	if !Pending(perm) {
		t.Error("nothing to be taken on a new disk")
	}
	check(t, Take(perm, esp, anyVersion))
	if _, err := os.Stat(esp); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the keys are still on the boot partition")
	}
	if Pending(perm) {
		t.Error("the boot partition is looked at at each boot")
	}
	id, err := identity.Load(filepath.Join(perm, identityDir), "")
	check(t, err)
	if id.Fingerprint() != c.id.Fingerprint() || !id.Claimed() {
		t.Error("another identity")
	}
	st, err := store.Open(filepath.Join(perm, storeFile))
	check(t, err)
	defer st.Close()
	if got, err := secret.Open(st, filepath.Join(perm, keysFile), noTPM).Value("db/password"); err != nil || string(got) != "precious" {
		t.Errorf("secret: %q, %v", got, err)
	}
	if objs, err := st.List("Volume"); err != nil || len(objs) != 2 {
		t.Errorf("%d volumes, %v", len(objs), err)
	}
	if _, found, err := st.Bucket("updates").Get("slot"); found || err != nil {
		t.Errorf("what was of the other disk's slots: %v, %v", found, err)
	}
	r, err := ReadRestored(perm)
	check(t, err)
	reader, err := backup.NewReader(bytes.NewReader(saved))
	check(t, err)
	if !bytes.Equal(r.ID, reader.Header().GetId()) {
		t.Error("restored from another backup")
	}
	there := &Source{Volumes: &disks{all: map[string][]byte{}}, Identity: filepath.Join(perm, identityDir)}
	fillAll(t, there, reader)
	for name, want := range c.disks.all {
		if got := there.Volumes.(*disks).all[name]; !bytes.Equal(got, want) {
			t.Errorf("volume %s: %d bytes are not those of before", name, len(got))
		}
	}
}

// fillAll sends each volume's chunks.
func fillAll(t *testing.T, s *Source, r *backup.Reader) {
	t.Helper()
	chunks := map[string][]*v1.BackupChunk{}
	name := ""
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		check(t, err)
		if v := rec.GetVolume(); v != nil {
			name = v.GetName()
		}
		if c := rec.GetChunk(); c != nil {
			chunks[name] = append(chunks[name], c)
		}
	}
	for _, v := range r.Header().GetVolumes() {
		check(t, s.Fill(t.Context(), v, next(chunks[v.GetName()])))
	}
}

func next(all []*v1.BackupChunk) func() (*v1.BackupChunk, error) {
	return func() (*v1.BackupChunk, error) {
		if len(all) == 0 {
			return nil, io.EOF
		}
		c := all[0]
		all = all[1:]
		return c, nil
	}
}

// A volume takes only chunks that its capsule once wrote.
func TestFillRefuses(t *testing.T) {
	c := newCapsule(t)
	stranger, err := backup.NewHasher([]byte("another capsule"))
	check(t, err)
	var out bytes.Buffer
	made, err := backup.NewWriter(&out, &v1.BackupHeader{Format: backup.Format, Id: backup.NewID(), Volumes: []*v1.BackupVolume{{Name: "wiki", Size: 4 * mib}}})
	check(t, err)
	check(t, made.Volume(&v1.BackupVolume{Name: "wiki", Size: 4 * mib}))
	evil := bytes.Repeat([]byte("evil"), backup.ChunkBytes/4)
	check(t, made.Chunk(0, stranger.Hash(evil), evil))
	_, err = made.End()
	check(t, err)
	r, err := backup.NewReader(&out)
	check(t, err)
	var chunk *v1.BackupChunk
	for rec, err := r.Next(); err == nil; rec, err = r.Next() {
		if rec.GetChunk() != nil {
			chunk = rec.GetChunk()
		}
	}
	v := &v1.BackupVolume{Name: "wiki", Size: 4 * mib}
	if err := c.Fill(t.Context(), v, next([]*v1.BackupChunk{chunk})); !errdefs.IsDataLoss(err) {
		t.Errorf("another capsule's chunk: %v", err)
	}
	chunk.Index = 99
	if err := c.Fill(t.Context(), v, next([]*v1.BackupChunk{chunk})); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a chunk beyond the end: %v", err)
	}
}

// The power may go after any step of Take: the next start ends with the same capsule,
// or begins anew.
func TestTakeCut(t *testing.T) {
	c := newCapsule(t)
	staged := withoutChunks(t, c.saved(t))
	// Each of these is what some cut leaves.
	for name, cut := range map[string]func(perm, esp string){
		"a draft is left":          func(perm, _ string) { check(t, os.MkdirAll(filepath.Join(perm, draftDir, "identity"), 0o700)) },
		"ready, nothing was moved": func(perm, esp string) { _, err := prepare(perm, esp, anyVersion); check(t, err) },
		"the identity was moved": func(perm, esp string) {
			_, err := prepare(perm, esp, anyVersion)
			check(t, err)
			check(t, os.Remove(filepath.Join(perm, identityDir)))
			check(t, os.Rename(filepath.Join(perm, readyDir, identityDir), filepath.Join(perm, identityDir)))
		},
		"all but the store was moved": func(perm, esp string) {
			_, err := prepare(perm, esp, anyVersion)
			check(t, err)
			check(t, os.Remove(filepath.Join(perm, identityDir)))
			for _, name := range []string{identityDir, keysFile, markFile} {
				check(t, os.Rename(filepath.Join(perm, readyDir, name), filepath.Join(perm, name)))
			}
		},
		"the boot partition is to be cleaned": func(perm, esp string) {
			_, err := prepare(perm, esp, anyVersion)
			check(t, err)
			check(t, settle(perm))
		},
	} {
		t.Run(name, func(t *testing.T) {
			perm, esp := t.TempDir(), filepath.Join(t.TempDir(), "restore")
			check(t, os.Mkdir(filepath.Join(perm, identityDir), 0o700))
			check(t, os.WriteFile(esp, staged, 0o600))
			cut(perm, esp)
			if !Pending(perm) {
				t.Fatal("nothing is looked for after the cut")
			}
			check(t, Take(perm, esp, anyVersion))
			id, err := identity.Load(filepath.Join(perm, identityDir), "")
			check(t, err)
			if id.Fingerprint() != c.id.Fingerprint() {
				t.Error("another identity")
			}
			check(t, store.Check(filepath.Join(perm, storeFile)))
			if _, err := os.Stat(esp); !errors.Is(err, fs.ErrNotExist) || Pending(perm) {
				t.Error("something is left to be done")
			}
		})
	}
}

// A disk with a capsule on it takes nothing, and a new one without a backup is new.
func TestTakeNothing(t *testing.T) {
	c := newCapsule(t)
	esp := filepath.Join(t.TempDir(), "restore")
	check(t, Take(t.TempDir(), esp, anyVersion))
	check(t, os.WriteFile(esp, withoutChunks(t, c.saved(t)), 0o600))
	other := newCapsule(t)
	check(t, Take(other.perm, esp, anyVersion))
	id, err := identity.Reload(filepath.Join(other.perm, identityDir))
	check(t, err)
	if id.Fingerprint() != other.id.Fingerprint() {
		t.Error("a capsule became another one")
	}
}

// What can't be restored is refused by the stick, and leaves nothing there.
func TestStageRefuses(t *testing.T) {
	c := newCapsule(t)
	good := withoutChunks(t, c.saved(t))
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	other := *c.Source
	other.Header = func() *v1.BackupHeader {
		h := c.Header()
		h.Fingerprint = "0000"
		return h
	}
	var foreign bytes.Buffer
	check(t, other.Write(t.Context(), &foreign, Order{Known: nothing()}))
	for name, tc := range map[string]struct {
		saved   []byte
		follows func(string) bool
		want    error
	}{
		"cut":                  {good[:len(good)-1], anyVersion, backup.ErrCut},
		"cut early":            {good[:20], anyVersion, backup.ErrCut},
		"flipped":              {flipped, anyVersion, errdefs.ErrDataLoss},
		"foreign":              {[]byte("a letter, and nothing else"), anyVersion, backup.ErrForeign},
		"of a newer system":    {good, func(string) bool { return false }, ErrNewer},
		"of another identity":  {foreign.Bytes(), anyVersion, backup.ErrDamaged},
		"with something after": {append(bytes.Clone(good), 'x'), anyVersion, backup.ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Stage{Dir: filepath.Join(t.TempDir(), "restore"), Follows: tc.follows}
			if _, err := s.Take(bytes.NewReader(tc.saved), false); !errors.Is(err, tc.want) {
				t.Errorf("%v", err)
			}
			if _, err := os.Stat(s.Dir); !errors.Is(err, fs.ErrNotExist) {
				t.Error("something is left of it")
			}
			if _, err := s.Get(""); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("it's there: %v", err)
			}
		})
	}
}

// A capsule whose volumes wait for their data has no backup to give: it would be one
// without that data.
func TestWriteRefusesWhatWaits(t *testing.T) {
	c := newCapsule(t)
	c.disks.waiting = []string{"lost"}
	if err := c.Write(t.Context(), io.Discard, Order{Volumes: true, Known: nothing()}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "lost") {
		t.Errorf("%v", err)
	}
}
