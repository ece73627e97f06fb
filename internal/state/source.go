package state

import (
	"bytes"
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/backup"
	"capsule/internal/identity"
	"capsule/internal/secret"
	"capsule/internal/store"
	"capsule/internal/volume"
)

// Volumes is what of the volume manager a backup needs.
type Volumes interface {
	Kept() (all []volume.Kept, waiting []string, err error)
	Blocks(ctx context.Context, volume string, read func(now volume.Kept, disk io.Reader) error) error
	Fill(ctx context.Context, v volume.Kept, next func() (at int64, data []byte, err error)) error
}

// Source is a capsule that is backed up.
type Source struct {
	Store    *store.Store
	Secrets  *secret.Book
	Volumes  Volumes
	Identity string // folder
	// Perm is the folder of all state.
	Perm string
	// Temp is a folder for a copy of the store, on a disk.
	Temp string
	// Header gives name, version, machine id and fingerprint.
	Header func() *v1.BackupHeader
}

// Order says what a backup is to have.
type Order struct {
	Volumes bool
	Base    []byte        // id of the backup that known is of; nil for a whole one
	Known   *backup.Known // not nil
}

// Write writes a backup. The store and the keys are those of one moment, each volume
// that of a later one.
func (s *Source) Write(ctx context.Context, w io.Writer, o Order) error {
	files, err := identity.Files(s.Identity)
	if err != nil {
		return err
	}
	hasher, err := backup.NewHasher(identity.Secret(files))
	if err != nil {
		return err
	}
	header, err := s.header(o)
	if err != nil {
		return err
	}
	b, err := backup.NewWriter(w, header)
	if err != nil {
		return err
	}
	if err := s.writeState(b, files); err != nil {
		return err
	}
	for _, v := range header.GetVolumes() {
		c := &copying{Writer: b, Order: o, volume: v, hasher: hasher}
		if err := s.Volumes.Blocks(ctx, v.GetName(), c.blocks); err != nil {
			return err
		}
	}
	_, err = b.End()
	return err
}

func (s *Source) header(o Order) (*v1.BackupHeader, error) {
	h := s.Header()
	h.Format, h.Id, h.Base, h.CreatedAt = backup.Format, backup.NewID(), o.Base, timestamppb.Now()
	all, waiting, err := s.Volumes.Kept()
	if err != nil {
		return nil, err
	}
	if len(waiting) > 0 {
		return nil, fmt.Errorf("volume %q waits for its data from the backup before: fill it with \"capsulectl capsule restore\", or delete it: %w", waiting[0], errdefs.ErrFailedPrecondition)
	}
	for _, v := range all {
		if o.Volumes {
			h.Volumes = append(h.Volumes, &v1.BackupVolume{Name: v.Name, Size: uint64(v.Size), Fresh: v.Fresh}) //nolint:gosec // positive
		} else {
			h.WithoutData = append(h.WithoutData, v.Name)
		}
	}
	return h, nil
}

// writeState writes the files.
func (s *Source) writeState(b *backup.Writer, files map[string][]byte) error {
	for _, name := range identity.FileNames {
		data, ok := files[name]
		if !ok {
			continue
		}
		if err := b.File(path.Join(identityDir, name), int64(len(data)), bytes.NewReader(data)); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp(s.Temp, "backup-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, storeFile)
	keys, err := s.Secrets.Backup(func() error { return s.Store.WriteTo(copied) })
	if err != nil {
		return err
	}
	if err := b.File(keysFile, int64(len(keys)), bytes.NewReader(keys)); err != nil {
		return err
	}
	f, err := os.Open(copied)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return b.File(storeFile, info.Size(), f)
}

// Restored says which backup the capsule came from; nil when from none.
func (s *Source) Restored() (*Restored, error) { return ReadRestored(s.Perm) }

// Waiting are the volumes that wait for their data, by name.
func (s *Source) Waiting() ([]string, error) {
	_, waiting, err := s.Volumes.Kept()
	return waiting, err
}

// Fill gives a volume its data. next gives its chunks, then io.EOF, which says that all
// came. Each must have a hash that this very capsule made.
func (s *Source) Fill(ctx context.Context, v *v1.BackupVolume, next func() (*v1.BackupChunk, error)) error {
	files, err := identity.Files(s.Identity)
	if err != nil {
		return err
	}
	hasher, err := backup.NewHasher(identity.Secret(files))
	if err != nil {
		return err
	}
	u, err := backup.NewUnpacker()
	if err != nil {
		return err
	}
	if v.GetSize() == 0 || v.GetSize() > backup.VolumeMax {
		return fmt.Errorf("volume %q can't have %d bytes: %w", v.GetName(), v.GetSize(), errdefs.ErrInvalidArgument)
	}
	return s.Volumes.Fill(ctx, volume.Kept{Name: v.GetName(), Size: int64(v.GetSize()), Fresh: v.GetFresh()}, func() (int64, []byte, error) { //nolint:gosec // bounded
		c, err := next()
		if err != nil {
			return 0, nil, err
		}
		if c.GetIndex() >= backup.Chunks(v.GetSize()) {
			return 0, nil, fmt.Errorf("chunk %d lies beyond its end: %w", c.GetIndex(), errdefs.ErrInvalidArgument)
		}
		data, err := u.Unpack(c.GetData(), backup.ChunkSize(c.GetIndex(), v.GetSize()))
		if err == nil && !hmac.Equal(hasher.Hash(data), c.GetHash()) {
			err = fmt.Errorf("chunk %d is not what this capsule once wrote: %w", c.GetIndex(), errdefs.ErrDataLoss)
		}
		return int64(c.GetIndex()) * backup.ChunkBytes, data, err //nolint:gosec // bounded
	})
}

// copying is one volume on its way into a backup.
type copying struct {
	*backup.Writer
	Order
	volume *v1.BackupVolume // of the header
	hasher backup.Hasher
}

var zeros [backup.ChunkBytes]byte

// blocks reads all of a volume, and writes what is in it and not known.
func (c *copying) blocks(now volume.Kept, disk io.Reader) error {
	c.volume.Size, c.volume.Fresh = uint64(now.Size), now.Fresh //nolint:gosec // it may have grown since the header
	if err := c.Volume(c.volume); err != nil {
		return err
	}
	chunk := make([]byte, backup.ChunkBytes)
	for i := range backup.Chunks(c.volume.GetSize()) {
		part := chunk[:backup.ChunkSize(i, c.volume.GetSize())]
		if _, err := io.ReadFull(disk, part); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("its device is shorter than %d bytes: %w", now.Size, errdefs.ErrDataLoss)
			}
			return err
		}
		if bytes.Equal(part, zeros[:len(part)]) {
			continue
		}
		hash := c.hasher.Hash(part)
		known, err := c.Known.Has(c.volume.GetName(), i, hash)
		if err != nil {
			return err
		}
		data := part
		if known {
			data = nil
		}
		if err := c.Chunk(i, hash, data); err != nil {
			return err
		}
	}
	return nil
}
