package ledger

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

const start = "0123456789abcdef"

// written is a ledger of n records.
func written(n int) []byte {
	var b bytes.Buffer
	e := Entry{}
	for range n {
		e = e.next(start)
		b.Write(e.line())
	}
	return b.Bytes()
}

func TestRead(t *testing.T) {
	three := written(3)
	other := bytes.Clone(three[RecordBytes : 2*RecordBytes])
	flipped := func(at int) []byte {
		b := bytes.Clone(three)
		b[at] ^= 1
		return b
	}
	for name, tc := range map[string]struct {
		file    []byte
		last    uint64
		torn    int
		damaged bool
	}{
		"nothing":                     {nil, 0, 0, false},
		"whole":                       {three, 3, 0, false},
		"one byte of the next":        {append(bytes.Clone(three), '0'), 3, 1, false},
		"all but the end of the last": {three[:3*RecordBytes-1], 2, RecordBytes - 1, false},
		"a record of zeros behind":    {append(bytes.Clone(three), make([]byte, RecordBytes)...), 3, RecordBytes, false},
		// Only who was told of the last record knows that it is lost.
		"the last one flipped":        {flipped(3*RecordBytes - 10), 2, RecordBytes, false},
		"more than a record behind":   {append(bytes.Clone(three), make([]byte, RecordBytes+1)...), 3, 0, true},
		"a flipped digit of a number": {flipped(15), 0, 0, true},
		"a flipped start":             {flipped(20), 0, 0, true},
		"a flipped sum":               {flipped(RecordBytes + 40), 1, 0, true},
		"a flipped line end":          {flipped(RecordBytes - 1), 0, 0, true},
		"a gap":                       {append(bytes.Clone(three[:RecordBytes]), append(bytes.Clone(three[2*RecordBytes:]), other...)...), 1, 0, true},
		"a record twice":              {append(bytes.Clone(three[:2*RecordBytes]), append(other, other...)...), 2, 0, true},
		"the first one missing":       {three[RecordBytes:], 0, 0, true},
		"text":                        {bytes.Repeat([]byte("no ledger "), 40), 0, 0, true},
	} {
		s, err := Read(bytes.NewReader(tc.file), 1)
		if errors.Is(err, ErrDamaged) != tc.damaged || err != nil && !tc.damaged {
			t.Errorf("%s: error %v, damaged is %v", name, err, tc.damaged)
		}
		if s.Last.Number != tc.last || s.Torn != tc.torn {
			t.Errorf("%s: %d records and %d torn bytes, want %d and %d", name, s.Last.Number, s.Torn, tc.last, tc.torn)
		}
		if want := tc.last > 0; (s.At.Number == 1) != want {
			t.Errorf("%s: record 1 is %+v", name, s.At)
		}
		path := filepath.Join(t.TempDir(), "ledger")
		if err := os.WriteFile(path, tc.file, 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := Open(path)
		if (err != nil) != tc.damaged {
			t.Errorf("%s: opened: %v", name, err)
		}
		if err != nil {
			continue
		}
		if e, err := w.Append(); err != nil || e.Number != tc.last+1 {
			t.Errorf("%s: appended %+v: %v", name, e, err)
		}
		if s, err := w.Check(tc.last); err != nil || s.Last.Number != tc.last+1 || s.Torn != 0 {
			t.Errorf("%s: holds %+v: %v", name, s, err)
		}
		w.Close()
	}
}

// Another history has other sums, although its numbers are the same.
func TestSumsTellHistoriesApart(t *testing.T) {
	a, b := Entry{}.next(start), Entry{}.next("fedcba9876543210")
	if x, y := a.next(start), b.next(start); x.Number != y.Number || x.Sum == y.Sum {
		t.Errorf("%+v and %+v", x, y)
	}
}

// Whatever a file holds: what is read is a chain of records at its start, and another
// one goes on with it.
func FuzzRead(f *testing.F) {
	three := written(3)
	f.Add(three)
	f.Add(three[:2*RecordBytes+7])
	f.Add(append(bytes.Clone(three), make([]byte, RecordBytes)...))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, file []byte) {
		s, err := Read(bytes.NewReader(file), 2)
		whole := int(s.Last.Number) * RecordBytes
		if whole > len(file) {
			t.Fatalf("%d records in %d bytes", s.Last.Number, len(file))
		}
		if err == nil && whole+s.Torn != len(file) {
			t.Fatalf("%d records and %d torn bytes in %d", s.Last.Number, s.Torn, len(file))
		}
		if err != nil && len(file) <= whole+RecordBytes {
			t.Fatalf("a tail of %d bytes is damage: %v", len(file)-whole, err)
		}
		if err != nil {
			return
		}
		next := s.Last.next(start)
		after, err := Read(io.MultiReader(bytes.NewReader(file[:whole]), bytes.NewReader(next.line())), s.Last.Number)
		if err != nil || after.Last != next || after.At != s.Last {
			t.Fatalf("one more, and it holds %+v: %v", after, err)
		}
	})
}
