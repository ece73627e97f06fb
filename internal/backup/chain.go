package backup

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
)

// A Chain gives the records of a backup, each chunk with its data, which may be of an
// earlier one. All are read once, side by side: their chunks have the same order.
type Chain struct {
	*Reader
	older []*cursor // the one that the backup stands on first
	name  string    // of the volume
}

// NewChain reads a backup and those that it stands on, in order, down to a whole one.
func NewChain(newest *Reader, older ...*Reader) (*Chain, error) {
	c := &Chain{Reader: newest}
	base := newest.Header().GetBase()
	for _, r := range older {
		if len(base) == 0 || !bytes.Equal(r.Header().GetId(), base) {
			return nil, fmt.Errorf("backup %x does not stand on backup %x: %w", newest.Header().GetId(), r.Header().GetId(), errdefs.ErrInvalidArgument)
		}
		base = r.Header().GetBase()
		c.older = append(c.older, &cursor{Reader: r})
	}
	if len(base) > 0 {
		return nil, fmt.Errorf("backup %x stands on backup %x, which is missing: %w", newest.Header().GetId(), base, errdefs.ErrNotFound)
	}
	return c, nil
}

// Next is that of a Reader.
func (c *Chain) Next() (*v1.BackupRecord, error) {
	rec, err := c.Reader.Next()
	if err != nil {
		return nil, err
	}
	if v := rec.GetVolume(); v != nil {
		c.name = v.GetName()
	}
	chunk := rec.GetChunk()
	if chunk == nil || chunk.Data != nil {
		return rec, nil
	}
	for _, older := range c.older {
		found, err := older.find(c.name, chunk.GetIndex())
		if err != nil {
			return nil, fmt.Errorf("the backup before, %x: %w", older.Header().GetId(), err)
		}
		if found == nil || !hmac.Equal(found.GetHash(), chunk.GetHash()) {
			break
		}
		if found.Data != nil {
			chunk.Data = found.Data
			return rec, nil
		}
	}
	return nil, damaged("none of the backups before has chunk %d of volume %s", chunk.GetIndex(), quoted(c.name))
}

// Rest reads the earlier backups to their ends.
func (c *Chain) Rest() error {
	for _, older := range c.older {
		for {
			_, err := older.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return fmt.Errorf("the backup before, %x: %w", older.Header().GetId(), err)
			}
		}
	}
	return nil
}

// cursor goes through the chunks of a backup, forward only.
type cursor struct {
	*Reader
	name string // of the volume
	at   *v1.BackupChunk
	end  bool
}

// find gives a chunk, nil when there's none. Those asked for come in order.
func (c *cursor) find(volume string, index uint64) (*v1.BackupChunk, error) {
	for !c.end && c.before(volume, index) {
		rec, err := c.Next()
		if errors.Is(err, io.EOF) {
			c.end = true
			break
		}
		if err != nil {
			return nil, err
		}
		if v := rec.GetVolume(); v != nil {
			c.name, c.at = v.GetName(), nil
		}
		if chunk := rec.GetChunk(); chunk != nil {
			c.at = chunk
		}
	}
	if c.at != nil && c.name == volume && c.at.GetIndex() == index {
		return c.at, nil
	}
	return nil, nil
}

// before tells whether what is asked for is still to come. At the beginning of a volume
// of that name it is, whatever the index.
func (c *cursor) before(volume string, index uint64) bool {
	if order := cmp.Compare(c.name, volume); order != 0 {
		return order < 0
	}
	return c.at == nil || c.at.GetIndex() < index
}

// Known tells which chunks the caller of a backup has already, from the requests that
// say so, in order.
type Known struct {
	// Receive gives the next of them; io.EOF after the last.
	Receive func() (*v1.BackupKnown, error)

	part *v1.BackupKnown
	at   int
	end  bool
}

// Has tells whether the caller has a chunk with this hash. Chunks are asked for in
// order.
func (k *Known) Has(volume string, index uint64, hash []byte) (bool, error) {
	for !k.end {
		if k.part == nil || k.at == len(k.part.GetIndexes()) {
			if err := k.receive(); err != nil {
				return false, err
			}
			continue
		}
		order := cmp.Or(cmp.Compare(k.part.GetVolume(), volume), cmp.Compare(k.part.GetIndexes()[k.at], index))
		if order >= 0 {
			return order == 0 && hmac.Equal(k.part.GetHashes()[k.at], hash), nil
		}
		k.at++
	}
	return false, nil
}

func (k *Known) receive() error {
	part, err := k.Receive()
	if errors.Is(err, io.EOF) {
		k.end = true
		return nil
	}
	if err != nil {
		return err
	}
	if len(part.GetIndexes()) != len(part.GetHashes()) {
		return fmt.Errorf("%d chunks are known with %d hashes: %w", len(part.GetIndexes()), len(part.GetHashes()), errdefs.ErrInvalidArgument)
	}
	k.part, k.at = part, 0
	return nil
}
