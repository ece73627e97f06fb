package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	v1 "capsule/api/capsule/v1"
)

// disk is a volume's content by chunk; what is not in it are zeros.
type disk map[uint64]string

const diskBytes = 10*ChunkBytes + 4096

func chunkOf(i uint64, text string) []byte {
	b := make([]byte, ChunkSize(i, diskBytes))
	for at := 0; at < len(b); at += len(text) {
		copy(b[at:], text)
	}
	return b
}

func header(base []byte, volumes ...string) *v1.BackupHeader {
	h := &v1.BackupHeader{Format: Format, Version: "v1.2.3", Name: "box", Id: NewID(), Base: base}
	for _, name := range volumes {
		h.Volumes = append(h.Volumes, &v1.BackupVolume{Name: name, Size: diskBytes})
	}
	return h
}

var files = map[string]string{"state.db": strings.Repeat("state ", 100_000), "identity/ca.key": "key", "empty": ""}

// write makes a backup of files and volumes, where known is that of the one before.
func write(t testing.TB, h *v1.BackupHeader, volumes map[string]disk, known *Known) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, h)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(err)
	for _, name := range []string{"empty", "identity/ca.key", "state.db"} {
		check(w.File(name, int64(len(files[name])), strings.NewReader(files[name])))
	}
	hasher, err := NewHasher([]byte("secret"))
	check(err)
	for _, v := range h.GetVolumes() {
		check(w.Volume(v))
		for i := range Chunks(diskBytes) {
			text, ok := volumes[v.GetName()][i]
			if !ok {
				continue
			}
			data := chunkOf(i, text)
			hash := hasher.Hash(data)
			has, err := known.Has(v.GetName(), i, hash)
			check(err)
			if has {
				data = nil
			}
			check(w.Chunk(i, hash, data))
		}
	}
	_, err = w.End()
	check(err)
	return out.Bytes()
}

func nothing() *Known {
	return &Known{Receive: func() (*v1.BackupKnown, error) { return nil, io.EOF }}
}

// knownOf is what a client would send of a backup, in messages of two chunks.
func knownOf(t *testing.T, saved []byte) *Known {
	t.Helper()
	var all []*v1.BackupKnown
	r, err := NewReader(bytes.NewReader(saved))
	if err != nil {
		t.Fatal(err)
	}
	name := ""
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if v := rec.GetVolume(); v != nil {
			name = v.GetName()
		}
		if c := rec.GetChunk(); c != nil {
			if len(all) == 0 || all[len(all)-1].GetVolume() != name || len(all[len(all)-1].GetIndexes()) == 2 {
				all = append(all, &v1.BackupKnown{Volume: name})
			}
			last := all[len(all)-1]
			last.Indexes, last.Hashes = append(last.Indexes, c.GetIndex()), append(last.Hashes, c.GetHash())
		}
	}
	return &Known{Receive: func() (*v1.BackupKnown, error) {
		if len(all) == 0 {
			return nil, io.EOF
		}
		next := all[0]
		all = all[1:]
		return next, nil
	}}
}

// read gives the volumes of a chain, newest first, and how many chunks the newest had.
func read(t *testing.T, saved ...[]byte) (map[string]disk, error) {
	t.Helper()
	var readers []*Reader
	for _, s := range saved {
		r, err := NewReader(bytes.NewReader(s))
		if err != nil {
			return nil, err
		}
		readers = append(readers, r)
	}
	c, err := NewChain(readers[0], readers[1:]...)
	if err != nil {
		return nil, err
	}
	u, err := NewUnpacker()
	if err != nil {
		t.Fatal(err)
	}
	got, name := map[string]disk{}, ""
	for {
		rec, err := c.Next()
		if errors.Is(err, io.EOF) {
			return got, c.Rest()
		}
		if err != nil {
			return nil, err
		}
		if v := rec.GetVolume(); v != nil {
			name = v.GetName()
			got[name] = disk{}
		}
		if ch := rec.GetChunk(); ch != nil {
			data, err := u.Unpack(ch.GetData(), ChunkSize(ch.GetIndex(), diskBytes))
			if err != nil {
				return nil, err
			}
			word, _, _ := strings.Cut(string(data), " ")
			got[name][ch.GetIndex()] = word + " "
		}
	}
}

// What was written comes back, through three generations: changed, added, emptied, a
// volume that goes and one that comes.
func TestChain(t *testing.T) {
	states := []map[string]disk{
		{"a": {0: "one ", 3: "three ", 10: "end "}, "b": {1: "bee "}, "d": {2: "dee "}},
		{"a": {0: "one ", 3: "THREE ", 5: "five ", 10: "end "}, "c": {0: "sea "}, "d": {2: "dee "}},
		{"a": {0: "one ", 5: "five ", 10: "END "}, "c": {0: "sea ", 1: "see "}, "d": {}},
	}
	names := [][]string{{"a", "b", "d"}, {"a", "c", "d"}, {"a", "c", "d"}}
	var chain [][]byte // newest first
	var base []byte
	for n, state := range states {
		h := header(base, names[n]...)
		known := nothing()
		if n > 0 {
			known = knownOf(t, chain[0])
		}
		chain = append([][]byte{write(t, h, state, known)}, chain...)
		got, err := read(t, chain...)
		if err != nil {
			t.Fatalf("generation %d: %v", n, err)
		}
		if diff := cmp.Diff(state, got); diff != "" {
			t.Errorf("generation %d: %s", n, diff)
		}
		base = h.GetId()
	}
	// Only what changed is in the second: two chunks of a, one of c.
	count := 0
	r, err := NewReader(bytes.NewReader(chain[1]))
	if err != nil {
		t.Fatal(err)
	}
	for rec, err := r.Next(); err == nil; rec, err = r.Next() {
		if rec.GetChunk().GetData() != nil {
			count++
		}
	}
	if count != 3 {
		t.Errorf("the second backup has the data of %d chunks", count)
	}
	for name, links := range map[string][][]byte{
		"the whole one is missing": chain[:2],
		"one between is missing":   {chain[0], chain[2]},
		"alone":                    chain[:1],
	} {
		if _, err := read(t, links...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	// Another whole backup under the right id doesn't have the right chunks.
	h := header(nil, "a")
	first, err := NewReader(bytes.NewReader(chain[2]))
	if err != nil {
		t.Fatal(err)
	}
	h.Id = first.Header().GetId()
	if _, err := read(t, chain[0], chain[1], write(t, h, map[string]disk{"a": {0: "other "}}, nothing())); !errors.Is(err, ErrDamaged) {
		t.Errorf("a chain with a foreign backup: %v", err)
	}
}

func TestFiles(t *testing.T) {
	saved := write(t, header(nil), nil, nothing())
	unpack := func(dir string, allowed ...string) error {
		r, err := NewReader(bytes.NewReader(saved))
		if err != nil {
			t.Fatal(err)
		}
		_, err = Files(r, dir, allowed)
		return err
	}
	dir := t.TempDir()
	if err := unpack(dir, "state.db", "identity/ca.key", "empty"); err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if err := unpack(t.TempDir(), "state.db", "empty"); !errors.Is(err, ErrDamaged) {
		t.Errorf("a file that is none of ours: %v", err)
	}
}

// Wherever it ends, a backup that is not whole says so, and never anything else.
func TestCut(t *testing.T) {
	saved := write(t, header(nil, "a"), map[string]disk{"a": {0: "x ", 9: "y "}}, nothing())
	for n := range len(saved) {
		_, err := read(t, saved[:n])
		if n == 0 && errors.Is(err, ErrForeign) {
			continue
		}
		if !errors.Is(err, ErrCut) {
			t.Fatalf("%d of %d bytes: %v", n, len(saved), err)
		}
	}
}

// No byte of a backup can be another one.
func TestFlipped(t *testing.T) {
	saved := write(t, header(nil, "a"), map[string]disk{"a": {0: "x "}}, nothing())
	for n := range saved {
		bad := bytes.Clone(saved)
		bad[n] ^= 0x10
		if _, err := read(t, bad); err == nil {
			t.Fatalf("byte %d of %d changed, and nobody saw it", n, len(saved))
		}
	}
}

func TestRefused(t *testing.T) {
	raw := func(recs ...*v1.BackupRecord) []byte {
		var out bytes.Buffer
		w, err := NewWriter(&out, recs[0].GetHeader())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range recs[1:] {
			if err := w.Put(r); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.End(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	head := func(change func(*v1.BackupHeader)) *v1.BackupRecord {
		h := header(nil, "a", "b")
		change(h)
		return &v1.BackupRecord{Record: &v1.BackupRecord_Header{Header: h}}
	}
	good := head(func(*v1.BackupHeader) {})
	file := func(path string, size uint64) *v1.BackupRecord {
		return &v1.BackupRecord{Record: &v1.BackupRecord_File{File: &v1.BackupFile{Path: path, Size: size}}}
	}
	data := &v1.BackupRecord{Record: &v1.BackupRecord_Data{Data: []byte("x")}}
	volume := func(name string, size uint64) *v1.BackupRecord {
		return &v1.BackupRecord{Record: &v1.BackupRecord_Volume{Volume: &v1.BackupVolume{Name: name, Size: size}}}
	}
	chunk := func(i uint64) *v1.BackupRecord {
		return &v1.BackupRecord{Record: &v1.BackupRecord_Chunk{Chunk: &v1.BackupChunk{Index: i, Hash: make([]byte, 32)}}}
	}
	for name, c := range map[string]struct {
		saved []byte
		want  error
	}{
		"newer":                 {raw(head(func(h *v1.BackupHeader) { h.Format++ })), ErrNewer},
		"another file":          {[]byte("PK\x03\x04 and so on, for long enough"), ErrForeign},
		"an empty file":         {nil, ErrForeign},
		"no header":             {raw(&v1.BackupRecord{}), ErrDamaged},
		"no id":                 {raw(head(func(h *v1.BackupHeader) { h.Id = nil })), ErrDamaged},
		"on itself":             {raw(head(func(h *v1.BackupHeader) { h.Base = h.GetId() })), ErrDamaged},
		"volumes out of order":  {raw(head(func(h *v1.BackupHeader) { h.Volumes[1].Name = "a" })), ErrDamaged},
		"a huge volume":         {raw(head(func(h *v1.BackupHeader) { h.Volumes[1].Size = VolumeMax + 1 })), ErrDamaged},
		"a path out of it":      {raw(good, file("../passwd", 0)), ErrDamaged},
		"an absolute path":      {raw(good, file("/etc/passwd", 0)), ErrDamaged},
		"a path in two forms":   {raw(good, file("a/./b", 0)), ErrDamaged},
		"a huge file":           {raw(good, file("a", FileMax+1)), ErrDamaged},
		"a short file":          {raw(good, file("a", ChunkBytes+1), data, volume("a", 1)), ErrDamaged},
		"a short file, ended":   {raw(good, file("a", 1)), ErrDamaged},
		"data of nothing":       {raw(good, data), ErrDamaged},
		"more data":             {raw(good, file("a", 1), data, data), ErrDamaged},
		"a file after a volume": {raw(good, volume("a", 1), file("a", 0)), ErrDamaged},
		"another volume":        {raw(good, volume("b", 1)), ErrDamaged},
		"a volume too many":     {raw(good, volume("a", 1), volume("b", 1), volume("c", 1)), ErrDamaged},
		"a chunk of nothing":    {raw(good, chunk(0)), ErrDamaged},
		"a chunk twice":         {raw(good, volume("a", ChunkBytes*3), chunk(1), chunk(1)), ErrDamaged},
		"a chunk beyond":        {raw(good, volume("a", ChunkBytes), chunk(1)), ErrDamaged},
		"another header":        {raw(good, good), ErrDamaged},
		"an empty record":       {raw(good, &v1.BackupRecord{}), ErrDamaged},
		"something behind":      {append(raw(good), 0), ErrDamaged},
	} {
		r, err := NewReader(bytes.NewReader(c.saved))
		for err == nil {
			_, err = r.Next()
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A hash tells nothing to who doesn't have the capsule's secret.
func TestHasher(t *testing.T) {
	a, err := NewHasher([]byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewHasher([]byte("b"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a.Hash([]byte("chunk")), b.Hash([]byte("chunk"))) || !bytes.Equal(a.Hash([]byte("chunk")), a.Hash([]byte("chunk"))) {
		t.Error("hashes of two capsules are the same, or those of one aren't")
	}
}

// A little data never becomes much.
func TestUnpackBomb(t *testing.T) {
	var out bytes.Buffer
	w, err := NewWriter(&out, header(nil))
	if err != nil {
		t.Fatal(err)
	}
	bomb := w.enc.EncodeAll(make([]byte, 64*ChunkBytes), nil)
	u, err := NewUnpacker()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Unpack(bomb, ChunkBytes); !errors.Is(err, ErrDamaged) {
		t.Errorf("%d bytes of bomb: %v", len(bomb), err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add(write(f, header(nil, "a", "b"), map[string]disk{"a": {0: "x "}, "b": {3: "y "}}, nothing()))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, saved []byte) {
		r, err := NewReader(bytes.NewReader(saved))
		if err != nil {
			return
		}
		u, err := NewUnpacker()
		if err != nil {
			t.Fatal(err)
		}
		for {
			rec, err := r.Next()
			if err != nil {
				return
			}
			if c := rec.GetChunk(); c != nil {
				_, _ = u.Unpack(c.GetData(), ChunkBytes)
			}
			if p := rec.GetFile().GetPath(); p != "" && !filepath.IsLocal(p) {
				t.Fatalf("path %q", p)
			}
		}
	})
}

func ExampleNewReader() {
	_, err := NewReader(strings.NewReader("a letter"))
	fmt.Println(err)
	// Output: it is no backup of a capsule: invalid argument
}
