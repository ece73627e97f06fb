package audit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
)

// lineMax is more than any record of ours takes: all fields at their longest,
// with every byte escaped.
const lineMax = 32 << 10

// tailMax is more than the files hold.
const tailMax = 1 << 20

// reader gives the records of one book.
type reader struct {
	files  []*os.File // oldest first, those that are not read yet
	newest *os.File
	end    int64 // of the newest, when it was opened; what comes later followers get
	lines  *bufio.Reader
	head   *Record // read, and not taken
}

func (r *reader) close() {
	for _, f := range r.files {
		f.Close()
	}
	r.files = nil
}

// peek is the next record, nil at the end. A line that is none, torn by a cut or
// of another program, is passed over.
func (r *reader) peek() (*Record, error) {
	for r.head == nil && len(r.files) > 0 {
		line, err := r.line()
		var rec Record
		if json.Unmarshal(line, &rec) == nil && rec.Method != "" {
			r.head = &rec
		}
		if errors.Is(err, io.EOF) {
			r.files[0].Close()
			r.files, r.lines = r.files[1:], nil
		} else if err != nil {
			return nil, err
		}
	}
	return r.head, nil
}

// line is the next one of the oldest file, nil for one that is too long.
func (r *reader) line() ([]byte, error) {
	if r.lines == nil {
		var in io.Reader = r.files[0]
		if r.files[0] == r.newest {
			in = io.LimitReader(in, r.end)
		}
		r.lines = bufio.NewReaderSize(in, lineMax)
	}
	line, err := r.lines.ReadSlice('\n')
	for long := false; ; long = true {
		if !errors.Is(err, bufio.ErrBufferFull) {
			if long {
				line = nil
			}
			return line, err
		}
		_, err = r.lines.ReadSlice('\n')
	}
}

// past is what was written until it was opened.
type past struct{ books []*reader }

func (p *past) close() {
	for _, r := range p.books {
		r.close()
	}
}

// next takes the oldest record of all books. Each book stays in the order in
// which it was written, also where the clock was set back.
func (p *past) next() (*Record, error) {
	var from *reader
	for _, r := range p.books {
		head, err := r.peek()
		if err != nil {
			return nil, err
		}
		if head != nil && (from == nil || head.Time.Before(from.head.Time)) {
			from = r
		}
	}
	if from == nil {
		return nil, nil
	}
	rec := from.head
	from.head = nil
	return rec, nil
}

// read gives what a query asks for. A tail is kept in memory, which is less than
// the files take.
func (p *past) read(ctx context.Context, q Query, give func(Record) error) error {
	var tail []Record
	q.Tail = min(q.Tail, tailMax)
	for ctx.Err() == nil {
		rec, err := p.next()
		if err != nil {
			return err
		}
		if rec == nil {
			return giveAll(tail, q.Tail, give)
		}
		if rec.Time.Before(q.Since) {
			continue
		}
		if q.Tail >= 0 {
			tail = append(tail, *rec)
			if int64(len(tail)) > 2*q.Tail+1 { // now and then, not each time
				tail = append(tail[:0], tail[int64(len(tail))-q.Tail:]...)
			}
			continue
		}
		if err := give(*rec); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func giveAll(tail []Record, most int64, give func(Record) error) error {
	if most >= 0 && int64(len(tail)) > most {
		tail = tail[int64(len(tail))-most:]
	}
	for _, rec := range tail {
		if err := give(rec); err != nil {
			return err
		}
	}
	return nil
}
