// Package audit owns the record of who changed what: one line of JSON for each
// call that may change something, and for each call that was refused. It is
// appended to, never written over, and rotates by size.
//
// It holds no secrets, since it never sees the content of a call. It never stops
// one either: what can't be written, on a full disk, is counted, said once in the
// system's log, and told of by the next record that can be.
//
// A record is in its file before the call is answered, and on the disk a second
// later at most. A power cut may take that second, and leaves no half of a record
// that would be read.
//
// Refused calls have files of their own: whoever is not let in can't push out
// what was changed by those who are. Nor can who is let in and changes nothing: of
// refusals, and of calls that came to nothing, each operator has a quota, and the
// others are counted. A call that did change something always has its record.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/quota"
)

// Limits of what is kept, of each file and of all.
const (
	ChangesMax  = 4 << 20 // bytes of a file of changes
	RefusalsMax = 1 << 20 // bytes of a file of refusals
	Files       = 4       // of each kind; the oldest goes
)

// What is recorded of each operator's refusals, so that nobody can wear the disk out or
// hide another: so many at once, then one after each of these.
const (
	refusalsBurst = 100
	refusalEvery  = time.Second
)

// And of the calls that came to nothing. They stand among the changes, whose files
// one operator fills in four weeks at this rate.
const (
	triesBurst = 100
	tryEvery   = time.Minute
)

const (
	syncAfter = time.Second
	queueMax  = 256 // records that a follower may be behind
	textMax   = 512 // bytes of a message, the longest field
	wordMax   = 256 // bytes of any other field
)

// Record is one call. Empty fields are left out.
type Record struct {
	Time     time.Time     `json:"time"`
	Operator string        `json:"operator"`
	Key      string        `json:"key,omitempty"`  // fingerprint of its public key
	From     string        `json:"from,omitempty"` // address and port
	Method   string        `json:"method"`         // "ObjectService/Apply"
	Object   string        `json:"object,omitempty"`
	Code     string        `json:"code"` // "OK", or that of gRPC; "Running" for a call that goes on
	Message  string        `json:"message,omitempty"`
	Duration time.Duration `json:"duration"` // nanoseconds
	// Lost are the calls before this one that have no record.
	Lost int `json:"lost,omitempty"`
}

// bounded is the record with no field longer than what a line has room for.
func (r Record) bounded() Record {
	for _, f := range []*string{&r.Operator, &r.Key, &r.From, &r.Method, &r.Object, &r.Code} {
		*f = cut(*f, wordMax)
	}
	r.Message = cut(r.Message, textMax)
	r.Time = r.Time.UTC()
	return r
}

func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	const more = "…"
	end := most - len(more)
	for end > 0 && s[end]&0xc0 == 0x80 { // in the middle of a rune
		end--
	}
	return s[:end] + more
}

// Log is the files of one folder, and maybe those of another that are only read. One
// process has it open at a time.
type Log struct {
	log      *slog.Logger
	changes  *book
	refusals *book
	earlier  []*book      // only read
	refused  *quota.Quota // of refusals, by whose they are
	tried    *quota.Quota // of calls that came to nothing, by operator

	mu        sync.Mutex
	timer     *time.Timer // until the next sync; nil when all is on the disk
	closed    bool
	followers map[chan Record]bool
}

// Open makes the folder if it is not there yet, and goes on where a former
// daemon, or a power cut, left off.
func Open(dir string, log *slog.Logger) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	l := &Log{
		log: log, followers: map[chan Record]bool{},
		refused: quota.New(refusalEvery, refusalsBurst), tried: quota.New(tryEvery, triesBurst),
	}
	var err error
	if l.changes, err = openBook(dir, changesBook, ChangesMax); err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	if l.refusals, err = openBook(dir, refusalsBook, RefusalsMax); err != nil {
		return nil, errors.Join(fmt.Errorf("open the audit log: %w", err), l.changes.close())
	}
	return l, nil
}

// OpenBeside keeps its records in dir, where those in earlier can be read and must
// not be written; there may be none.
func OpenBeside(earlier, dir string, log *slog.Logger) (*Log, error) {
	l, err := Open(dir, log)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{changesBook, refusalsBook} {
		l.earlier = append(l.earlier, &book{dir: earlier, name: name, size: math.MaxInt64})
	}
	return l, nil
}

// Changed appends a call that was let in and may have changed something.
func (l *Log) Changed(r Record) { l.append(l.changes, r) }

// Tried appends a call that was let in and changed nothing, or counts it where its
// operator has made many. That is told by name: a key is renewed.
func (l *Log) Tried(r Record) {
	l.within(l.tried, r.Operator, l.changes, r)
}

// Refused appends a call that was not let in, or counts it where there are many;
// by is whose quota it is of.
func (l *Log) Refused(r Record, by string) {
	l.within(l.refused, by, l.refusals, r)
}

// within appends what somebody has a quota of, or counts it.
func (l *Log) within(q *quota.Quota, by string, b *book, r Record) {
	if q.Allow(by) {
		l.append(b, r)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b.lost++
}

func (l *Log) append(b *book, r Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	r = r.bounded()
	r.Lost = b.lost
	if err := b.append(r); err != nil {
		b.lost++
		if !b.failed {
			l.log.Error("the audit log can't be written; calls go on without a record", "error", err)
		}
		b.failed = true
		return
	}
	b.lost, b.failed = 0, false
	l.tell(r)
	if l.timer == nil {
		l.timer = time.AfterFunc(syncAfter, l.sync)
	}
}

// tell gives followers what was written. One that is too far behind is let go.
func (l *Log) tell(r Record) {
	for f := range l.followers {
		select {
		case f <- r:
		default:
			delete(l.followers, f)
			close(f)
		}
	}
}

func (l *Log) sync() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = nil
	if l.closed {
		return
	}
	if err := errors.Join(l.changes.sync(), l.refusals.sync()); err != nil {
		l.log.Error("sync the audit log", "error", err)
	}
}

// Close puts everything on the disk; what comes later is dropped.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
	}
	for f := range l.followers {
		delete(l.followers, f)
		close(f)
	}
	return errors.Join(l.changes.sync(), l.refusals.sync(), l.changes.close(), l.refusals.close())
}

// Query says which records are wanted.
type Query struct {
	Since  time.Time // zero is from the first
	Tail   int64     // only the last ones; negative is all
	Follow bool      // go on with what comes
}

// Read gives records in the order they were written, changes and refusals merged
// by time, and with Follow what comes until ctx ends.
func (l *Log) Read(ctx context.Context, q Query, give func(Record) error) error {
	past, next, err := l.open(q.Follow)
	if err != nil {
		return err
	}
	defer past.close()
	defer l.forget(next)
	if err := past.read(ctx, q, give); err != nil || !q.Follow {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r, ok := <-next:
			if !ok {
				return fmt.Errorf("the audit log went on faster than it was read; ask again: %w", errdefs.ErrUnavailable)
			}
			if r.Time.Before(q.Since) {
				continue
			}
			if err := give(r); err != nil {
				return err
			}
		}
	}
}

// open takes what is written at this moment, and with follow a channel of what
// comes after it.
func (l *Log) open(follow bool) (*past, chan Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, nil, fmt.Errorf("the audit log is closed: %w", errdefs.ErrUnavailable)
	}
	p := &past{}
	for _, b := range slices.Concat(l.earlier, []*book{l.changes, l.refusals}) {
		r, err := b.open()
		if err != nil {
			p.close()
			return nil, nil, fmt.Errorf("read the audit log: %w", err)
		}
		p.books = append(p.books, r)
	}
	if !follow {
		return p, nil, nil
	}
	next := make(chan Record, queueMax)
	l.followers[next] = true
	return p, next, nil
}

func (l *Log) forget(f chan Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.followers, f)
}
