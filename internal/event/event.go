// Package event owns the record of what happened to objects: a ring in the
// store. Events are appended in the transaction of the change that they tell
// of, so that neither is ever seen without the other. It knows no kind of
// object and decides nothing.
package event

import (
	"encoding/binary"
	"fmt"
	"strings"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
)

// Max is how many events are kept; older ones are dropped.
const Max = 10000

// messageMax bounds the sentence of one event, in bytes.
const messageMax = 1024

// Append adds e to the ring in b and gives it the next id.
func Append(b *bolt.Bucket, e *v1.Event) error {
	id, err := b.NextSequence()
	if err != nil {
		return fmt.Errorf("number event: %w", err)
	}
	e.Id = id
	// It may quote what a workload said: an event that can't be encoded would undo the
	// change that it tells of.
	e.Message = strings.ToValidUTF8(e.Message[:min(len(e.Message), messageMax)], "")
	data, err := proto.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event %d: %w", id, err)
	}
	if err := b.Put(key(id), data); err != nil {
		return fmt.Errorf("write event %d: %w", id, err)
	}
	return trim(b, id)
}

// trim drops what is older than the newest Max events.
func trim(b *bolt.Bucket, newest uint64) error {
	if newest <= Max {
		return nil
	}
	c := b.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.First() {
		if len(k) == 8 && binary.BigEndian.Uint64(k) > newest-Max {
			return nil
		}
		if err := c.Delete(); err != nil {
			return fmt.Errorf("drop oldest event: %w", err)
		}
	}
	return nil
}

// List gives at most limit events with an id above after, oldest first.
func List(b *bolt.Bucket, after uint64, limit int) ([]*v1.Event, error) {
	var events []*v1.Event
	c := b.Cursor()
	for k, data := c.Seek(key(after + 1)); k != nil && len(events) < limit; k, data = c.Next() {
		e := &v1.Event{}
		if err := proto.Unmarshal(data, e); err != nil {
			return nil, fmt.Errorf("decode event %x: %w", k, err)
		}
		events = append(events, e)
	}
	return events, nil
}

// Kept gives the numbers of the oldest event that is kept, and of the newest that
// there ever was; both are 0 when there was none.
func Kept(b *bolt.Bucket) (oldest, newest uint64) {
	if k, _ := b.Cursor().First(); len(k) == 8 {
		oldest = binary.BigEndian.Uint64(k)
	}
	return oldest, b.Sequence()
}

func key(id uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, id)
}
