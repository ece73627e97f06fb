// Package store owns what the capsule must remember: objects with their spec
// and intent, their status, events, and small tables of others (Bucket). It is
// one bbolt file and a checked copy beside it. It never interprets a spec.
//
//	format          "stamp"      → JSON of stamp
//	objects         <class>/name → sealed Object without its status
//	status          uid          → sealed status of its kind
//	events          id           → Event (internal/event)
//	kv/<bucket>     key          → sealed value
//
// Every change of an object and its event are one transaction, synced to disk
// before the call returns. What a newer capsuled wrote and this one does not
// know (fields, keys, buckets) is kept as it is.
package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/durable"
)

// Limits that an operator can meet.
const (
	ObjectsMax   = 1000
	SpecMaxBytes = 256 << 10
)

// lockWait is how long Open waits for a process that holds the store.
const lockWait = 3 * time.Second

// CopySuffix is added to the path of the store for its checked copy.
const CopySuffix = ".copy"

// Errors that callers tell apart.
var (
	// ErrUnreadable: there was a store and it can't be read, or not by this
	// version. The machine must not be taken for an empty one.
	ErrUnreadable = errors.New("the state of this capsule can't be read")
	// ErrUnchanged is returned by the function given to Mutate when nothing is
	// to be written.
	ErrUnchanged = errors.New("unchanged")
)

// Names of the buckets.
var (
	bucketFormat  = []byte("format")
	bucketObjects = []byte("objects")
	bucketStatus  = []byte("status")
	bucketEvents  = []byte("events")
	bucketKV      = []byte("kv")
)

// Store is safe for use by several goroutines.
type Store struct {
	db   *bolt.DB
	path string

	// mu makes a change and what watchers see of it one step.
	mu       sync.Mutex
	watchers map[*watcher]struct{}
	added    chan struct{} // closed at the next event

	copier copier
}

// Open opens the store at path, or makes a new one when there is neither a
// store nor a copy of one. Errors that are ErrUnreadable mean recovery mode.
func Open(path string) (*Store, error) {
	exists, err := present(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	if !exists {
		copied, err := present(path + CopySuffix)
		if err != nil {
			return nil, unreadable(path, err)
		}
		if copied {
			return nil, unreadable(path, fmt.Errorf("it is missing, but its copy %s exists", path+CopySuffix))
		}
		if err := create(path); err != nil {
			return nil, fmt.Errorf("make store %s: %w", path, err)
		}
	}
	db, err := open(path, false)
	if err != nil {
		return nil, err
	}
	if err := restamp(db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s := &Store{db: db, path: path, watchers: map[*watcher]struct{}{}, added: make(chan struct{})}
	s.copier.start(s)
	return s, nil
}

// OpenCopy opens the checked copy of the store at path, to show what was
// declared while the store itself can't be read. Nothing can be written to it.
func OpenCopy(path string) (*Store, error) {
	db, err := open(path+CopySuffix, true)
	if err != nil {
		return nil, err
	}
	return &Store{db: db, path: path + CopySuffix, watchers: map[*watcher]struct{}{}, added: make(chan struct{})}, nil
}

// open checks the file, then maps it.
func open(path string, readOnly bool) (*bolt.DB, error) {
	if err := verify(path); err != nil {
		return nil, unreadable(path, err)
	}
	db, err := openBolt(path, readOnly)
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open store %s: another process holds it: %w", path, err)
	}
	if err != nil {
		return nil, unreadable(path, err)
	}
	if err := guard(func() error { return db.View(readAll) }); err != nil {
		return nil, errors.Join(unreadable(path, err), db.Close())
	}
	return db, nil
}

func openBolt(path string, readOnly bool) (db *bolt.DB, err error) {
	err = guard(func() error {
		db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait, ReadOnly: readOnly})
		return err
	})
	return db, err
}

// guard turns a panic, also one of a bad address in the mapped file, into an
// error.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return fn()
}

// create makes an empty store under another name first, so that a file of that
// name is always a whole store: an empty one is damage.
func create(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bolt.Open(temp, 0o600, &bolt.Options{Timeout: lockWait})
	if err != nil {
		return err
	}
	if err := errors.Join(restamp(db), db.Close()); err != nil {
		return err
	}
	return durable.Rename(temp, path)
}

// Close makes a last copy and releases the file. Watches end.
func (s *Store) Close() error {
	s.copier.stop()
	s.mu.Lock()
	for w := range s.watchers {
		w.end()
	}
	s.tellAdded()
	s.mu.Unlock()
	return s.db.Close()
}

// ReadOnly tells that this is a copy opened by OpenCopy.
func (s *Store) ReadOnly() bool { return s.db.IsReadOnly() }

// Get gives an object with its status; kind "" means a workload of either kind.
func (s *Store) Get(kind, name string) (obj *v1.Object, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		obj, err = view{tx: tx}.Get(kind, name)
		return err
	})
	return obj, err
}

// List gives all objects of a kind, or of every kind, by name.
func (s *Store) List(kind string) (objs []*v1.Object, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		objs, err = view{tx: tx}.List(kind)
		return err
	})
	return objs, err
}

func present(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func unreadable(path string, err error) error {
	return fmt.Errorf("open store %s: %w: %w", path, ErrUnreadable, err)
}

// update runs fn in one transaction and then tells watchers of the changes
// that it returns.
func (s *Store) update(fn func(*bolt.Tx) ([]Change, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ReadOnly() {
		return errReadOnly
	}
	var changes []Change
	var noted bool
	err := s.db.Update(func(tx *bolt.Tx) (err error) {
		events := tx.Bucket(bucketEvents)
		before := events.Sequence()
		changes, err = fn(tx)
		noted = events.Sequence() != before
		return err
	})
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("write store: %w: %w", errdefs.ErrResourceExhausted, err)
	}
	if err != nil {
		return err
	}
	for _, c := range changes {
		s.publish(c)
	}
	if noted {
		s.tellAdded()
	}
	return nil
}
