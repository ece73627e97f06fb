package ledger

import "fmt"

// Witness remembers what it was told of a ledger, outside of the machine that keeps it.
type Witness struct {
	Last   Entry  // that was acknowledged
	Acked  uint64 // acknowledgements
	Starts int    // of the writer, as far as they were told of
}

// Told takes an acknowledgement. Numbers may be left out, of answers that were lost on
// their way; one that comes again was lost on the disk.
func (w *Witness) Told(e Entry) error {
	if e.Number <= w.Last.Number {
		return fmt.Errorf("record %d was acknowledged, and then record %d was written", w.Last.Number, e.Number)
	}
	if e.Start != w.Last.Start {
		w.Starts++
	}
	w.Last = e
	w.Acked++
	return nil
}

// Verify compares what a ledger holds with what was acknowledged before it was read. s
// is the answer to that record's number. The sum stands for all records before it.
func Verify(acked Entry, s State) error {
	switch {
	case acked == Entry{} || s.At == acked:
		return nil
	case s.At == Entry{}:
		return fmt.Errorf("record %d was acknowledged, and %d is the last", acked.Number, s.Last.Number)
	default:
		return fmt.Errorf("record %d was acknowledged as %s, and is %s of start %s now", acked.Number, acked.Sum, s.At.Sum, s.At.Start)
	}
}
