package store

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/event"
)

// eventsPage bounds what one Events reads of the ring, in events, so that whoever
// looks for few among many holds no transaction for long.
const eventsPage = 1000

// Happening is an event without what the store knows of it: its number, its time
// and its object.
type Happening struct {
	Type string // one word for programs
	Text string // a sentence without its object
}

// EventPage is a part of the ring.
type EventPage struct {
	Events  []*v1.Event
	Through uint64 // the last number that was looked at
	More    bool   // there are some above it
	// Of the whole ring: the oldest that is kept and the newest that there ever was.
	Oldest, Newest uint64
}

// Events gives, oldest first, at most limit events above a number that match.
func (s *Store) Events(after uint64, limit int, match func(*v1.Event) bool) (page EventPage, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketEvents)
		page.Oldest, page.Newest = event.Kept(b)
		page.Through = min(after, page.Newest)
		all, err := event.List(b, after, eventsPage)
		if err != nil {
			return err
		}
		for _, e := range all {
			if len(page.Events) == limit {
				break
			}
			page.Through = e.GetId()
			if match == nil || match(e) {
				page.Events = append(page.Events, e)
			}
		}
		page.More = page.Through < page.Newest
		return nil
	})
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return page, fmt.Errorf("the capsule stops: %w", errdefs.ErrUnavailable)
	}
	if err != nil {
		return page, fmt.Errorf("read events: %w", err)
	}
	return page, nil
}

// NewestEvent is the number of the newest event that there ever was.
func (s *Store) NewestEvent() (newest uint64, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		_, newest = event.Kept(tx.Bucket(bucketEvents))
		return nil
	})
	return newest, err
}

// EventAdded is closed at the next event, and at the store's end.
func (s *Store) EventAdded() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.added
}

// tellAdded wakes those who wait for an event; s.mu is held.
func (s *Store) tellAdded() {
	close(s.added)
	s.added = make(chan struct{})
}

// Note keeps an event about obj that no change of it makes.
func (s *Store) Note(obj *v1.Object, kind, text string) error {
	return s.update(func(tx *bolt.Tx) ([]Change, error) { return nil, noteText(tx, obj, kind, text) })
}

// NoteChange keeps an event about the machine or the like, which is no object,
// unless the newest of its type among the last events says the same.
func (s *Store) NoteChange(obj *v1.Object, kind, text string) error {
	err := s.update(func(tx *bolt.Tx) ([]Change, error) {
		said := message(obj, text)
		b := tx.Bucket(bucketEvents)
		_, newest := event.Kept(b)
		all, err := event.List(b, newest-min(newest, eventsPage), eventsPage)
		if err != nil {
			return nil, err
		}
		for i := len(all) - 1; i >= 0; i-- {
			if e := all[i]; e.GetKind() == obj.Meta.Kind && e.GetType() == kind {
				if e.GetMessage() == said {
					return nil, ErrUnchanged // nothing is written
				}
				break
			}
		}
		return nil, noteText(tx, obj, kind, text)
	})
	if errors.Is(err, ErrUnchanged) {
		return nil
	}
	return err
}

// note appends the event of a change of obj.
func note(tx *bolt.Tx, obj *v1.Object, kind string) error {
	return noteText(tx, obj, kind, fmt.Sprintf("%s, generation %d", kind, obj.Meta.Generation))
}

func noteText(tx *bolt.Tx, obj *v1.Object, kind, text string) error {
	return event.Append(tx.Bucket(bucketEvents), &v1.Event{
		Time: timestamppb.New(time.Now()), Kind: obj.Meta.Kind, Name: obj.Meta.Name,
		Uid: obj.Meta.Uid, Generation: obj.Meta.Generation, Type: kind, Message: message(obj, text),
	})
}

// message is a sentence that says what it is about.
func message(obj *v1.Object, text string) string {
	return fmt.Sprintf("%s %s: %s", strings.ToLower(obj.Meta.Kind), obj.Meta.Name, text)
}
