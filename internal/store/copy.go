package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"capsule/internal/durable"
)

// copyEvery is the least time between two copies: changes come in bursts, and
// each copy writes the whole file.
const copyEvery = 10 * time.Second

// copier keeps the checked copy behind the store.
type copier struct {
	dirty chan struct{}
	quit  chan struct{}
	done  chan struct{}
	mu    sync.Mutex // one copy at a time
}

func (c *copier) start(s *Store) {
	c.dirty, c.quit, c.done = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	if fresh, err := present(s.path + CopySuffix); err == nil && !fresh {
		c.wake()
	}
	go c.run(s)
}

// wake says that the copy is behind.
func (c *copier) wake() {
	select {
	case c.dirty <- struct{}{}:
	default:
	}
}

func (c *copier) stop() {
	if c.quit == nil {
		return
	}
	close(c.quit)
	<-c.done
	c.quit = nil
}

func (c *copier) run(s *Store) {
	defer close(c.done)
	save := func() {
		if err := s.Copy(); err != nil {
			slog.Error("the checked copy of the store is behind", "error", err)
		}
	}
	for {
		select {
		case <-c.dirty:
			save()
		case <-c.quit:
			select {
			case <-c.dirty:
				save()
			default:
			}
			return
		}
		pause := time.NewTimer(copyEvery)
		select {
		case <-pause.C:
		case <-c.quit:
			pause.Stop()
		}
	}
}

// Copy writes the checked copy now: to another name, read back, then renamed.
// The one before stays until then.
func (s *Store) Copy() error {
	s.copier.mu.Lock()
	defer s.copier.mu.Unlock()
	temp := s.path + CopySuffix + ".new"
	if err := s.writeCopy(temp); err != nil {
		return fmt.Errorf("copy store %s: %w", s.path, err)
	}
	db, err := open(temp, true)
	if err != nil {
		return fmt.Errorf("copy store %s: read back: %w", s.path, err)
	}
	if err := db.Close(); err != nil {
		return fmt.Errorf("copy store %s: %w", s.path, err)
	}
	if err := durable.Rename(temp, s.path+CopySuffix); err != nil {
		return fmt.Errorf("copy store %s: %w", s.path, err)
	}
	return nil
}

// WriteTo writes the store as it is now to a new file at path, and reads it back.
func (s *Store) WriteTo(path string) error {
	err := s.writeCopy(path)
	if err == nil {
		err = Check(path)
	}
	if err != nil {
		return fmt.Errorf("copy store %s: %w", s.path, err)
	}
	return nil
}

// Check tells whether this version can read the store at path, which nobody has open.
// Errors that are ErrUnreadable say why not.
func Check(path string) error {
	db, err := open(path, true)
	if err != nil {
		return err
	}
	return db.Close()
}

func (s *Store) writeCopy(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = s.db.View(func(tx *bolt.Tx) error {
		_, err := tx.WriteTo(f)
		return err
	})
	return errors.Join(err, f.Sync(), f.Close())
}
