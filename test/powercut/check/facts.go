package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/lvm"
	"capsule/test/powercut/plan"
)

// checkFacts looks at everything that was promised before the cut, and tells of
// all that is missing.
func (b *boot) checkFacts(ctx context.Context) error {
	var errs []error
	for _, f := range b.plan.Facts {
		if !f.Holds(b.cut.N) || b.volumes == nil && f.NeedsVolumes() {
			continue
		}
		b.facts++
		if err := b.checkFact(ctx, f); err != nil {
			errs = append(errs, fmt.Errorf("promised by %q: %w", f.Said, err))
		}
	}
	return errors.Join(errs...)
}

func (b *boot) checkFact(ctx context.Context, f plan.Fact) error {
	switch {
	case f.Object != nil:
		return b.checkObject(ctx, f.Object)
	case f.Content != nil:
		return b.checkContent(ctx, f.Content)
	case f.Snapshot != nil:
		return b.checkSnapshot(f.Snapshot)
	case f.PoolBytes > 0:
		return checkPool(f.PoolBytes)
	case f.File != "":
		return checkFile(f.File)
	case f.Image != "":
		return checkImage(f.Image)
	case f.Starts != nil:
		return b.checkStarts(f.Starts)
	case f.Keeps != "":
		return b.checkKeeps(f.Keeps)
	}
	return errors.New("a fact of no kind")
}

func (b *boot) checkObject(ctx context.Context, want *plan.Object) error {
	got, err := b.store.Get(want.Kind, want.Name)
	if want.Gone {
		return gone(want.Kind+" "+want.Name, got.GetMeta().GetDeletedAt() != nil, err)
	}
	if err != nil {
		return err
	}
	if env := got.GetWorkload().GetSpec().GetEnv(); want.Env != nil && !maps.Equal(env, want.Env) {
		return fmt.Errorf("%s %q has env %v, want %v", want.Kind, want.Name, env, want.Env)
	}
	if want.SizeBytes > 0 {
		return b.checkSize(ctx, got, want.SizeBytes)
	}
	return nil
}

// gone judges something that must not be there any more, or be going.
func gone(what string, going bool, err error) error {
	if going || errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		return fmt.Errorf("%s is still there", what)
	}
	return err
}

// checkSize of a volume: declared, and of the file system, but for what ext4
// keeps for itself.
func (b *boot) checkSize(ctx context.Context, o *v1.Object, want int64) error {
	name := o.GetMeta().GetName()
	if got := o.GetVolume().GetSpec().GetSize(); got < want {
		return fmt.Errorf("volume %q is declared with %d bytes, want %d", name, got, want)
	}
	root, err := b.root(ctx, name)
	if err != nil {
		return err
	}
	var s unix.Statfs_t
	if err := unix.Statfs(root, &s); err != nil {
		return err
	}
	if got := int64(s.Blocks) * s.Bsize; got < want*3/4 {
		return fmt.Errorf("the file system of volume %q has %d bytes, want nearly %d", name, got, want)
	}
	return nil
}

func (b *boot) checkContent(ctx context.Context, want *plan.Content) error {
	root, err := b.rootOf(ctx, want.Volume, want.Snapshot)
	if err != nil {
		return err
	}
	file := filepath.Join(root, want.Path)
	data, err := os.ReadFile(file)
	if want.Gone {
		if errors.Is(err, fs.ErrNotExist) {
			err = errdefs.ErrNotFound
		}
		return gone(file, false, err)
	}
	if err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", sha256.Sum256(data)); got != want.SHA256 {
		return fmt.Errorf("%s has other content: %d bytes, %d zeros, SHA-256 %s, want %s", file, len(data), bytes.Count(data, []byte{0}), got, want.SHA256)
	}
	if want.Owner == "" {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return err
	}
	if got := fmt.Sprintf("%d:%d %#o", st.Uid, st.Gid, st.Mode&0o7777); got != want.Owner {
		return fmt.Errorf("%s belongs to %s, want %s", file, got, want.Owner)
	}
	return nil
}

func (b *boot) checkSnapshot(want *plan.Snapshot) error {
	all, err := b.volumes.Snapshots(want.Volume)
	if want.Gone && errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	found := slices.ContainsFunc(all, func(s *v1.Snapshot) bool { return s.GetName() == want.Name })
	if found == want.Gone {
		return fmt.Errorf("snapshot %q of volume %q: found is %v", want.Name, want.Volume, found)
	}
	return nil
}

func checkPool(want int64) error {
	pool, err := lvm.ReadPool()
	if err != nil {
		return err
	}
	if pool.DataSize < want {
		return fmt.Errorf("the pool has %d bytes, want %d", pool.DataSize, want)
	}
	return nil
}

func checkFile(path string) error {
	info, err := os.Stat(filepath.Join(permDir, path))
	if err == nil && info.Size() == 0 {
		err = fmt.Errorf("%s is empty", path)
	}
	return err
}
