// Package ledger is what a workload of a fault campaign keeps: a file of numbered
// records that are synced one by one, each bound to all before it. Whoever was told of
// a record can ask later whether it is still there, and with the same history.
package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Entry is one record. It is a line of the file: number and start as 16 hexadecimal
// digits, the sum as 64.
type Entry struct {
	// Number counts from 1; the zero Entry stands before the first record.
	Number uint64 `json:"number"`
	// Start is of the writer: another one after each of its starts.
	Start string `json:"start"`
	// Sum is the SHA-256 of the sum before, the number and the start.
	Sum string `json:"sum"`
}

const (
	startDigits = 16
	// RecordBytes of one record, its line's end included.
	RecordBytes = 16 + 1 + startDigits + 1 + 2*sha256.Size + 1
)

// next is the record that follows.
func (e Entry) next(start string) Entry {
	n := Entry{Number: e.Number + 1, Start: start}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %016x %s", e.Sum, n.Number, start))
	n.Sum = hex.EncodeToString(sum[:])
	return n
}

func (e Entry) line() []byte { return fmt.Appendf(nil, "%016x %s %s\n", e.Number, e.Start, e.Sum) }

// parse reads a line that may be anything.
func parse(line []byte) (e Entry, ok bool) {
	fields := bytes.Split(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
	if len(fields) != 3 {
		return e, false
	}
	n, err := strconv.ParseUint(string(fields[0]), 16, 64)
	e = Entry{Number: n, Start: string(fields[1]), Sum: string(fields[2])}
	return e, err == nil && len(e.Start) == startDigits && bytes.Equal(e.line(), line)
}

// ErrDamaged says that a record is wrong that more was written behind.
var ErrDamaged = errors.New("the ledger is damaged")

// State is what a ledger holds.
type State struct {
	Last Entry `json:"last"`
	// At is the record that was asked for; the zero Entry when there is none.
	At Entry `json:"at"`
	// Torn bytes follow the last record: of one whose write was cut, which nobody was
	// told of.
	Torn int `json:"torn"`
}

// Read reads a ledger from its first record on; at is the number of a record to give,
// or 0. What follows the last good record is torn while it is no longer than a record,
// since the next one is written only once the one before is synced. All else is
// ErrDamaged, with the place.
func Read(r io.Reader, at uint64) (s State, err error) {
	line := make([]byte, RecordBytes)
	for {
		n, err := io.ReadFull(r, line)
		switch {
		case err == io.EOF:
			return s, nil
		case err == io.ErrUnexpectedEOF:
			s.Torn = n
			return s, nil
		case err != nil:
			return s, fmt.Errorf("read record %d: %w", s.Last.Number+1, err)
		}
		e, ok := parse(line)
		if !ok || e != s.Last.next(e.Start) {
			return s.end(r, line)
		}
		if s.Last = e; e.Number == at {
			s.At = e
		}
	}
}

// end tells a record that is not whole from damage.
func (s State) end(r io.Reader, line []byte) (State, error) {
	if n, err := io.ReadFull(r, make([]byte, 1)); n == 0 && err == io.EOF {
		s.Torn = len(line)
		return s, nil
	}
	return s, fmt.Errorf("record %d, at byte %d, is %q: %w", s.Last.Number+1, s.Last.Number*RecordBytes, line, ErrDamaged)
}
