package update

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/store"
)

// What the bucket holds, as JSON: history/<number> → record. Numbers grow; a newer
// version may keep more keys, and more in a record: both stay as they are.
const (
	historyKeys = "history/"
	historyMax  = 100 // records; the oldest go
)

// outcome of an update, in the words of the store.
type outcome string

const (
	installed  outcome = "installed"
	tentative  outcome = "tentative"
	confirmed  outcome = "confirmed"
	rolledBack outcome = "rolled-back"
)

// outcomes in the words of the API. Those of a newer version are unspecified.
var outcomes = map[outcome]v1.UpdateOutcome{
	installed:  v1.UpdateOutcome_UPDATE_OUTCOME_INSTALLED,
	tentative:  v1.UpdateOutcome_UPDATE_OUTCOME_TENTATIVE,
	confirmed:  v1.UpdateOutcome_UPDATE_OUTCOME_CONFIRMED,
	rolledBack: v1.UpdateOutcome_UPDATE_OUTCOME_ROLLED_BACK,
}

// facts are what this version knows of a record. Every one is always written: that
// is how an emptied one is told from one of a newer version.
type facts struct {
	Version     string        `json:"version"`
	Slot        string        `json:"slot"`
	Verity      string        `json:"verity"` // root hash, hex
	From        string        `json:"from"`   // version that it replaced
	Time        time.Time     `json:"time"`   // of the installation
	Outcome     outcome       `json:"outcome"`
	Ended       time.Time     `json:"ended"` // of the outcome
	Reason      string        `json:"reason"`
	Activated   bool          `json:"activated"` // it had a boot entry
	Addressed   bool          `json:"addressed"` // an uplink had an address then
	Window      time.Duration `json:"window"`    // ns
	AutoConfirm time.Duration `json:"autoConfirm"`
}

// record is one update of this capsule.
type record struct {
	key string
	facts
	unknown map[string]json.RawMessage
}

// decodeRecord gives an empty record for one that a newer version wrote in another
// form: it keeps its place, and is never written.
func decodeRecord(key string, data []byte) *record {
	r := &record{key: key}
	if json.Unmarshal(data, &r.unknown) != nil || json.Unmarshal(data, &r.facts) != nil {
		return &record{key: key}
	}
	return r
}

func (r *record) encode() ([]byte, error) {
	known, err := json.Marshal(r.facts)
	if err != nil {
		return nil, err
	}
	all := map[string]json.RawMessage{}
	maps.Copy(all, r.unknown)
	if err := json.Unmarshal(known, &all); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// end gives the record its outcome.
func (r *record) end(o outcome, at time.Time, reason string) {
	r.Outcome, r.Ended, r.Reason = o, at.UTC(), reason
}

// open: what became of it isn't known yet.
func (r *record) open() bool { return r.Outcome == installed || r.Outcome == tentative }

func (r *record) proto() *v1.UpdateRecord {
	out := &v1.UpdateRecord{
		Version: r.Version, Slot: r.Slot, FromVersion: r.From, Outcome: outcomes[r.Outcome], Reason: r.Reason,
		Time: timestamppb.New(r.Time),
	}
	if !r.Ended.IsZero() {
		out.Ended = timestamppb.New(r.Ended)
	}
	return out
}

// history is all records, oldest first.
type history []*record

func readHistory(b *store.Bucket) (history, error) {
	var h history
	if b == nil { // recovery mode
		return nil, nil
	}
	err := b.Each(func(key string, value []byte) error {
		if strings.HasPrefix(key, historyKeys) {
			h = append(h, decodeRecord(key, value))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the history of updates: %w", err)
	}
	return h, nil
}

// last is the newest record that fits; nil when none does.
func (h history) last(fits func(*record) bool) *record {
	for i := len(h) - 1; i >= 0; i-- {
		if fits(h[i]) {
			return h[i]
		}
	}
	return nil
}

// next is the key of a record to come.
func (h history) next() string {
	n := 0
	if len(h) > 0 {
		_, _ = fmt.Sscanf(h[len(h)-1].key, historyKeys+"%d", &n) // a key of another form: from the start
	}
	return fmt.Sprintf(historyKeys+"%016d", n+1)
}

func putRecord(b *store.Bucket, r *record) error {
	data, err := r.encode()
	if err == nil {
		err = b.Put(r.key, data)
	}
	if err != nil {
		return fmt.Errorf("keep the history of updates: %w", err)
	}
	return nil
}

// addRecord keeps a new record and drops what is too old.
func addRecord(b *store.Bucket, f facts) (*record, error) {
	h, err := readHistory(b)
	if err != nil {
		return nil, err
	}
	r := &record{key: h.next(), facts: f}
	r.Time, r.Ended = r.Time.UTC(), r.Ended.UTC()
	if err := putRecord(b, r); err != nil {
		return nil, err
	}
	for len(h) >= historyMax {
		if err := b.Delete(h[0].key); err != nil {
			return nil, fmt.Errorf("keep the history of updates: %w", err)
		}
		h = h[1:]
	}
	return r, nil
}
