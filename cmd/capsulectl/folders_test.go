//go:build linux

package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/config"
	"capsule/internal/image"
	"capsule/internal/store"
	"capsule/internal/volume"
)

// folderVolumes are volumes where there is no LVM: folders. Names ask for what
// else needs a broken machine: an export of "cut" breaks off, that of "liar" has
// another checksum than it says, and "sick" can't be made.
type folderVolumes struct {
	dir   string
	store *store.Store
	freed func(volume string)
	wakes chan string

	mu     sync.Mutex
	pool   *capsulev1.Pool
	claims map[string]map[string]bool // volume, workload: shared
	kept   []*capsulev1.Snapshot
}

func newFolderVolumes(dir string, st *store.Store) (*folderVolumes, error) {
	return &folderVolumes{
		dir: dir, store: st, wakes: make(chan string, 100), claims: map[string]map[string]bool{},
		pool: &capsulev1.Pool{Size: 100 << 30, Used: 10 << 30, MetadataSize: 1 << 30, MetadataUsed: 1 << 28, OvercommitMax: 1000,
			Level: capsulev1.PoolLevel_POOL_LEVEL_OK, Reserve: 5 << 30},
	}, os.MkdirAll(dir, 0o755)
}

func (v *folderVolumes) data(name string) string { return filepath.Join(v.dir, name) }

func (v *folderVolumes) snapshot(volume, name string) string {
	return filepath.Join(v.dir, ".snapshots", volume, name)
}

// run makes volumes be as declared until ctx ends.
func (v *folderVolumes) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case name := <-v.wakes:
			if err := v.look(name); err != nil && ctx.Err() == nil {
				panic(err)
			}
		}
	}
}

func (v *folderVolumes) Wake(name string) { v.wakes <- name }

func (v *folderVolumes) look(name string) error {
	o, err := v.store.Get(manifest.KindVolume, name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.GetMeta().GetDeletedAt() != nil {
		v.mu.Lock()
		v.kept = slices.DeleteFunc(v.kept, func(s *capsulev1.Snapshot) bool { return s.GetVolume() == name })
		v.mu.Unlock()
		return errors.Join(os.RemoveAll(v.data(name)), v.store.Remove(o.GetMeta().GetUid()))
	}
	if err := os.MkdirAll(v.data(name), 0o755); err != nil {
		return err
	}
	err = v.store.PutVolumeStatus(o.GetMeta().GetUid(), v.status(o))
	v.freed(name)
	return err
}

func (v *folderVolumes) status(o *capsulev1.Object) *capsulev1.VolumeStatus {
	name := o.GetMeta().GetName()
	s := &capsulev1.VolumeStatus{
		Generation: o.GetMeta().GetGeneration(), Phase: capsulev1.VolumePhase_VOLUME_PHASE_READY,
		Size: o.GetVolume().GetSpec().GetSize(), Used: 1 << 20, Holders: v.Holders(name),
	}
	list, _ := v.Snapshots(name) //nolint:errcheck // never fails of one that is there
	s.Snapshots = uint32(len(list))
	switch {
	case name == "sick":
		s.Phase, s.Message = capsulev1.VolumePhase_VOLUME_PHASE_FAILED, "its file system needs a check by hand"
	case len(s.Holders) > 0:
		s.Phase = capsulev1.VolumePhase_VOLUME_PHASE_IN_USE
	}
	return s
}

func (v *folderVolumes) Holders(name string) []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var names []string
	for workload := range v.claims[name] {
		names = append(names, workload)
	}
	slices.Sort(names)
	return names
}

func (v *folderVolumes) Claim(_ context.Context, c volume.Claimant, mounts []*capsulev1.Mount) error {
	for _, m := range mounts {
		if _, err := v.store.Get(manifest.KindVolume, m.GetVolume()); err != nil {
			return &volume.HeldError{Volume: m.GetVolume(), Reason: "which does not exist; starts by itself once it is created"}
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, m := range mounts {
		for other, shared := range v.claims[m.GetVolume()] {
			if other != c.Workload && (!shared || !m.GetShared()) {
				return &volume.HeldError{Volume: m.GetVolume(), Holder: other}
			}
		}
	}
	for _, m := range mounts {
		claims := v.claims[m.GetVolume()]
		if _, has := claims[c.Workload]; has {
			continue
		}
		if claims == nil {
			claims = map[string]bool{}
			v.claims[m.GetVolume()] = claims
		}
		claims[c.Workload] = m.GetShared()
		v.Wake(m.GetVolume())
	}
	return nil
}

func (v *folderVolumes) Mount(ctx context.Context, c volume.Claimant, mounts []*capsulev1.Mount, _ image.Image) ([]volume.Mounted, error) {
	return nil, v.Claim(ctx, c, mounts)
}

func (v *folderVolumes) Release(_ context.Context, workload string, keep []string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for name, claims := range v.claims {
		if _, has := claims[workload]; has && !slices.Contains(keep, name) {
			delete(claims, workload)
			v.Wake(name)
		}
	}
	return nil
}

// Admit refuses to shrink, and to promise more than the pool may.
func (v *folderVolumes) Admit(tx store.View, objs []*capsulev1.Object) (map[string][]string, error) {
	var errs []error
	warnings := map[string][]string{}
	for _, o := range objs {
		is, was := o.GetVolume().GetSpec().GetSize(), tx.Old(o).GetVolume().GetSpec().GetSize()
		if is < was {
			errs = append(errs, fmt.Errorf("volume %q can't shrink from %d to %d bytes: %w", o.GetMeta().GetName(), was, is, errdefs.ErrFailedPrecondition))
		}
		if is > 1000<<30 {
			errs = append(errs, fmt.Errorf("volume %q: more would be promised than 1000 %% of the pool: %w", o.GetMeta().GetName(), errdefs.ErrResourceExhausted))
		}
		for _, m := range o.GetWorkload().GetSpec().GetMounts() {
			for _, holder := range v.Holders(m.GetVolume()) {
				if holder != o.GetMeta().GetName() && !m.GetShared() {
					warnings[o.GetMeta().GetUid()] = []string{(&volume.HeldError{Volume: m.GetVolume(), Holder: holder}).Error()}
				}
			}
		}
	}
	return warnings, errors.Join(errs...)
}

// is gives a volume that there is.
func (v *folderVolumes) is(name string) (*capsulev1.Object, error) {
	return v.store.Get(manifest.KindVolume, name)
}

func (v *folderVolumes) Snapshot(_ context.Context, name, snapshot string) (*capsulev1.Snapshot, error) {
	o, err := v.is(name)
	if err != nil {
		return nil, err
	}
	if snapshot == "" {
		snapshot = "at-" + strings.ToLower(time.Now().UTC().Format("20060102-150405"))
	}
	if err := os.CopyFS(v.snapshot(name, snapshot), os.DirFS(v.data(name))); err != nil {
		return nil, fmt.Errorf("snapshot %q of volume %q is there already: %w", snapshot, name, errdefs.ErrAlreadyExists)
	}
	s := &capsulev1.Snapshot{Volume: name, Name: snapshot, CreatedAt: timestamppb.Now(), Size: o.GetVolume().GetSpec().GetSize(), Used: 1 << 20}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.kept = append(v.kept, s)
	v.Wake(name)
	return proto.CloneOf(s), nil
}

func (v *folderVolumes) Snapshots(name string) ([]*capsulev1.Snapshot, error) {
	if name != "" {
		if _, err := v.is(name); err != nil {
			return nil, err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	var list []*capsulev1.Snapshot
	for _, s := range v.kept {
		if name == "" || s.GetVolume() == name {
			list = append(list, proto.CloneOf(s))
		}
	}
	return list, nil
}

func (v *folderVolumes) DeleteSnapshot(_ context.Context, name, snapshot string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, s := range v.kept {
		if s.GetVolume() == name && s.GetName() == snapshot {
			v.kept = slices.Delete(v.kept, i, i+1)
			v.Wake(name)
			return os.RemoveAll(v.snapshot(name, snapshot))
		}
	}
	return fmt.Errorf("volume %q has no snapshot %q: %w", name, snapshot, errdefs.ErrNotFound)
}

// source is the folder of a volume or of a snapshot of it.
func (v *folderVolumes) source(name, snapshot string) (string, *capsulev1.Object, error) {
	o, err := v.is(name)
	if err != nil || snapshot == "" {
		return v.data(name), o, err
	}
	dir := v.snapshot(name, snapshot)
	if _, err := os.Stat(dir); err != nil {
		return "", nil, fmt.Errorf("volume %q has no snapshot %q: %w", name, snapshot, errdefs.ErrNotFound)
	}
	return dir, o, nil
}

func (v *folderVolumes) Restore(ctx context.Context, name, snapshot string) (*capsulev1.Snapshot, error) {
	dir, _, err := v.source(name, snapshot)
	if err != nil {
		return nil, err
	}
	if holders := v.Holders(name); len(holders) > 0 {
		return nil, fmt.Errorf("volume %q is mounted by workload %q: capsulectl workload stop %s: %w", name, holders[0], holders[0], errdefs.ErrFailedPrecondition)
	}
	kept, err := v.Snapshot(ctx, name, "before-restore-"+time.Now().UTC().Format("20060102-150405"))
	if err != nil {
		return nil, err
	}
	return kept, errors.Join(os.RemoveAll(v.data(name)), os.CopyFS(v.data(name), os.DirFS(dir)))
}

func (v *folderVolumes) Clone(ctx context.Context, name, snapshot, clone string) (*capsulev1.Object, error) {
	dir, o, err := v.source(name, snapshot)
	if err != nil {
		return nil, err
	}
	return v.make(ctx, clone, o.GetVolume().GetSpec().GetSize(), func(to string) error { return os.CopyFS(to, os.DirFS(dir)) })
}

// make makes a volume that is filled before it is seen.
func (v *folderVolumes) make(ctx context.Context, name string, size int64, fill func(dir string) error) (*capsulev1.Object, error) {
	if _, err := v.is(name); err == nil {
		return nil, fmt.Errorf("volume %q is there already: %w", name, errdefs.ErrAlreadyExists)
	}
	draft := filepath.Join(v.dir, ".draft-"+name)
	defer os.RemoveAll(draft)
	if err := fill(draft); err != nil {
		return nil, err
	}
	if err := os.Rename(draft, v.data(name)); err != nil {
		return nil, err
	}
	o := volumeOf(name, 0, size, 0)
	results, err := v.store.Apply(ctx, []*capsulev1.Object{o}, false, nil)
	if err != nil {
		return nil, err
	}
	v.Wake(name)
	return results[0].GetObject(), nil
}

func (v *folderVolumes) Export(_ context.Context, name, snapshot string, start func(*capsulev1.ExportStart) error, w io.Writer) (*capsulev1.ArchiveEnd, error) {
	dir, o, err := v.source(name, snapshot)
	if err != nil {
		return nil, err
	}
	if err := start(&capsulev1.ExportStart{Size: o.GetVolume().GetSpec().GetSize(), Used: 1 << 20}); err != nil {
		return nil, err
	}
	sum, n := sha256.New(), new(countingWriter)
	z, err := zstd.NewWriter(io.MultiWriter(w, sum, n))
	if err != nil {
		return nil, err
	}
	t := tar.NewWriter(z)
	if err := t.AddFS(os.DirFS(dir)); err != nil {
		return nil, err
	}
	if name == "cut" {
		return nil, errors.Join(z.Flush(), fmt.Errorf(`connection error: desc = "error reading from server: EOF": %w`, errdefs.ErrUnavailable))
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return nil, err
	}
	if name == "liar" {
		sum.Write([]byte("more"))
	}
	return &capsulev1.ArchiveEnd{Sha256: sum.Sum(nil), Bytes: int64(*n), Files: uint64(len(names(dir)))}, nil
}

type countingWriter int64

func (c *countingWriter) Write(p []byte) (int, error) {
	*c += countingWriter(len(p))
	return len(p), nil
}

// names of the files in a folder.
func names(dir string) (list []string) {
	fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // of a test's own folder
		if err == nil && !d.IsDir() {
			list = append(list, path)
		}
		return err
	})
	return list
}

func (v *folderVolumes) Import(ctx context.Context, target *capsulev1.ImportTarget, r io.Reader, end func() (*capsulev1.ArchiveEnd, error)) (*capsulev1.Object, uint64, error) {
	size := target.GetSize()
	if size == 0 {
		size = 1 << 30
	}
	var files []string
	o, err := v.make(ctx, target.GetName(), size, func(dir string) error {
		sum := sha256.New()
		if err := unpackArchive(dir, io.TeeReader(r, sum)); err != nil {
			return err
		}
		said, err := end()
		if err == nil && string(said.GetSha256()) != string(sum.Sum(nil)) {
			err = fmt.Errorf("the archive arrived with another checksum: %w", errdefs.ErrDataLoss)
		}
		files = names(dir)
		return err
	})
	return o, uint64(len(files)), err
}

func unpackArchive(dir string, r io.Reader) error {
	z, err := zstd.NewReader(r)
	if err != nil {
		return err
	}
	defer z.Close()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, z)
			return err
		}
		if err != nil {
			return fmt.Errorf("the archive is damaged: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = writeAll(path, t)
		}
		if err != nil {
			return err
		}
	}
}

func writeAll(path string, r io.Reader) error {
	data, err := io.ReadAll(r)
	return errors.Join(err, os.WriteFile(path, data, 0o600))
}

func (v *folderVolumes) Pool() (*capsulev1.Pool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	spec, err := config.Spec(v.store)
	if _, _, v.pool.OvercommitMax = manifest.PoolLimits(spec.GetPool()); v.pool.OvercommitMax == 101 { // a test asks for a pool in trouble
		v.pool.Level, v.pool.Message = capsulev1.PoolLevel_POOL_LEVEL_WARN, "fills up; delete files, snapshots or volumes"
	}
	return proto.CloneOf(v.pool), err
}

// Ready is when a machine's volumes are known; folders are from the start.
func (v *folderVolumes) Ready(context.Context) error { return nil }

// For backups a volume is what is in its file "disk", and zeros.
func (v *folderVolumes) disk(name string) string { return filepath.Join(v.data(name), "disk") }

// awaited is how a restored store marks a volume without data.
const awaited = "awaited/"

func (v *folderVolumes) Kept() (all []volume.Kept, waiting []string, err error) {
	waits := map[string]bool{}
	err = v.store.Bucket("volumes").Each(func(key string, _ []byte) error {
		if name, ok := strings.CutPrefix(key, awaited); ok {
			waits[name] = true
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	objs, err := v.store.List(manifest.KindVolume)
	for _, o := range objs {
		name := o.GetMeta().GetName()
		if waits[name] {
			waiting = append(waiting, name)
		} else {
			all = append(all, volume.Kept{Name: name, Size: o.GetVolume().GetSpec().GetSize()})
		}
	}
	return all, waiting, err
}

func (v *folderVolumes) Blocks(_ context.Context, name string, read func(volume.Kept, io.Reader) error) error {
	o, err := v.is(name)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(v.disk(name), os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	size := o.GetVolume().GetSpec().GetSize()
	return read(volume.Kept{Name: name, Size: size}, io.LimitReader(io.MultiReader(f, zeros{}), size))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func (v *folderVolumes) Fill(_ context.Context, k volume.Kept, next func() (int64, []byte, error)) error {
	if err := os.MkdirAll(v.data(k.Name), 0o755); err != nil {
		return err
	}
	f, err := os.Create(v.disk(k.Name))
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		at, data, err := next()
		if errors.Is(err, io.EOF) {
			return v.store.Bucket("volumes").Delete(awaited + k.Name)
		}
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(data, at); err != nil {
			return err
		}
	}
}
