package logs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// collect reads the log as "STREAM text", partial records with a "…".
func collect(t *testing.T, dir string, o Options) []string {
	t.Helper()
	var lines []string
	err := Follow(t.Context(), dir, o, func(r Record) error {
		lines = append(lines, show(r))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func show(r Record) string {
	text := fmt.Sprintf("%d %s", r.Stream, r.Data)
	if r.Partial {
		text += "…"
	}
	return text
}

func newWriter(t *testing.T, dir string, limits Limits) *Writer {
	t.Helper()
	w, err := NewWriter(dir, limits)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

var all = Options{Tail: -1}

func TestLinesKeepOrderAndStream(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, DefaultLimits)
	w.Write(Stdout, []byte("one\ntwo\nbegin"))
	w.Write(Stderr, []byte("bad\n"))
	w.Write(Stdout, []byte(" end\nlast"))
	w.Close()
	if err := Mark(dir, "ended with code 0"); err != nil {
		t.Fatal(err)
	}
	want := []string{"1 one\n", "1 two\n", "1 begin…", "2 bad\n", "1  end\n", "1 last…", "3 ended with code 0\n"}
	if diff := cmp.Diff(want, collect(t, dir, all)); diff != "" {
		t.Error(diff)
	}
}

// Bytes come out as they went in, whatever the length of lines (IO-07).
func TestBytesAreExact(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, Limits{FileBytes: 4 << 20, Files: 32})
	in := sha256.New()
	print := func(b []byte) {
		for len(b) > 0 { // pieces as a pipe gives them
			n := min(len(b), 1+rand.IntN(DataMax))
			in.Write(b[:n])
			w.Write(Stdout, b[:n])
			w.Flush()
			b = b[n:]
		}
	}
	print([]byte(strings.Repeat("x", 65537) + "\n"))
	print([]byte(strings.Repeat("y", 1<<20) + "\n"))
	print(bytes.Repeat([]byte("z"), 50<<20))
	print([]byte("\x00\r\n\xff\nend"))
	w.Close()
	out := sha256.New()
	var last Record
	err := Follow(t.Context(), dir, all, func(r Record) error {
		out.Write(r.Data)
		last = r
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(in.Sum(nil), out.Sum(nil)) {
		t.Error("the log differs from what was printed")
	}
	if last.Partial != true {
		t.Error("the last line has no newline but is not partial")
	}
}

func TestRotationKeepsTheNewest(t *testing.T) {
	dir := t.TempDir()
	limits := Limits{FileBytes: 4096, Files: 3}
	w := newWriter(t, dir, limits)
	for i := range 10000 {
		w.Write(Stdout, fmt.Appendf(nil, "line %d\n", i))
		w.Flush()
	}
	w.Close()
	var size int64
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, name := range files {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
	}
	if limit := limits.FileBytes * int64(limits.Files); size > limit || len(files) != limits.Files {
		t.Errorf("%d files of %d bytes, limit %d", len(files), size, limit)
	}
	lines := collect(t, dir, all)
	if len(lines) < 100 || lines[len(lines)-1] != "1 line 9999\n" {
		t.Errorf("%d lines, last %q", len(lines), lines[len(lines)-1])
	}
	for i, line := range lines {
		if want := fmt.Sprintf("1 line %d\n", 10000-len(lines)+i); line != want {
			t.Fatalf("line %d is %q, want %q", i, line, want)
		}
	}
}

// Who writes as fast as it is read is read to where it was at the beginning.
func TestReadingHasAnEnd(t *testing.T) {
	for name, limits := range map[string]Limits{"in one file": {1 << 20, 3}, "over the limit": {1024, 3}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w := newWriter(t, dir, limits)
			defer w.Close()
			write := func() {
				w.Write(Stdout, []byte("again\n"))
				w.Flush()
			}
			for range 20 {
				write()
			}
			read := 0
			err := Follow(t.Context(), dir, all, func(Record) error {
				if read++; read > 20 {
					return errors.New("it reads what was written later")
				}
				for range 5 {
					write()
				}
				return nil
			})
			if err != nil || read == 0 {
				t.Errorf("%d records, %v", read, err)
			}
		})
	}
}

func TestTail(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, Limits{FileBytes: 256, Files: 100})
	for i := range 50 {
		w.Write(Stdout, fmt.Appendf(nil, "%d\n", i))
		w.Flush()
	}
	w.Write(Stdout, []byte("half"))
	w.Close()
	for _, tc := range []struct {
		tail  int64
		first string
		count int
	}{
		{-1, "1 0\n", 51}, {0, "", 0}, {1, "1 half…", 1}, {2, "1 49\n", 2}, {21, "1 30\n", 21}, {51, "1 0\n", 51}, {1000, "1 0\n", 51},
	} {
		got := collect(t, dir, Options{Tail: tc.tail})
		if tc.tail == 0 && len(got) == 1 && got[0] == "1 half…" {
			continue // the rest of a line that is being written
		}
		if len(got) != tc.count || tc.count > 0 && got[0] != tc.first {
			t.Errorf("tail %d: %d lines from %q, want %d from %q", tc.tail, len(got), got[:min(1, len(got))], tc.count, tc.first)
		}
	}
}

func TestSince(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, DefaultLimits)
	w.Write(Stdout, []byte("old\n"))
	w.Flush()
	var cut time.Time
	_ = Follow(t.Context(), dir, all, func(r Record) error { cut = r.Time.Add(1); return nil })
	w.Write(Stdout, []byte("new\n"))
	w.Close()
	if diff := cmp.Diff([]string{"1 new\n"}, collect(t, dir, Options{Tail: -1, Since: cut})); diff != "" {
		t.Error(diff)
	}
}

// A follower sees several writers in turn, rotation in between, and ends when
// the folder goes (IO-09).
func TestFollow(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	lines := make(chan string)
	done := make(chan error, 1)
	go func() {
		done <- Follow(t.Context(), dir, Options{Follow: true, Tail: -1}, func(r Record) error {
			lines <- show(r)
			return nil
		})
	}()
	next := 0
	for range 3 {
		if err := Mark(dir, "started"); err != nil {
			t.Fatal(err)
		}
		if got := <-lines; got != "3 started\n" {
			t.Fatalf("got %q, want the mark", got)
		}
		w := newWriter(t, dir, Limits{FileBytes: 300, Files: 4})
		for range 100 {
			w.Write(Stdout, fmt.Appendf(nil, "%d\n", next))
			w.Flush()
			if got, want := <-lines, fmt.Sprintf("1 %d\n", next); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
			next++
		}
		w.Close()
	}
	// A writer still open keeps the inode, not the log.
	w := newWriter(t, dir, DefaultLimits)
	defer w.Close()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A follower gets the end of a log that was removed at once after it.
func TestFollowTellsTheEndOfARemovedLog(t *testing.T) {
	for range 50 {
		dir := filepath.Join(t.TempDir(), "web")
		if err := Mark(dir, "started"); err != nil {
			t.Fatal(err)
		}
		got, done := make(chan string, 2), make(chan error, 1)
		go func() {
			done <- Follow(t.Context(), dir, Options{Follow: true, Tail: -1}, func(r Record) error {
				got <- show(r)
				return nil
			})
			close(got)
		}()
		<-got
		if err := errors.Join(Mark(dir, "ended"), Remove(dir), Remove(dir)); err != nil {
			t.Fatal(err)
		}
		if last := <-got; last != "3 ended\n" {
			t.Fatalf("last record %q", last)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestFollowEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	if err := Mark(dir, "started"); err != nil {
		t.Fatal(err)
	}
	err := Follow(ctx, dir, Options{Follow: true, Tail: -1}, func(Record) error { cancel(); return nil })
	if err != nil {
		t.Fatal(err)
	}
}

func TestMissingLog(t *testing.T) {
	err := Follow(t.Context(), filepath.Join(t.TempDir(), "no"), all, nil)
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// A record that a power cut left half written, and damage in the middle, cost
// no other record.
func TestDamage(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"torn header": func(b []byte) []byte { return b[:len(b)-headerBytes-1] },
		"torn data":   func(b []byte) []byte { return b[:len(b)-1] },
		"zeros":       func(b []byte) []byte { return append(b[:len(b)-6], make([]byte, 5000)...) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w := newWriter(t, dir, DefaultLimits)
			w.Write(Stdout, []byte("first\nsecond\nthird\n"))
			w.Close()
			path := filepath.Join(dir, fileName(1))
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := Mark(dir, "started"); err != nil {
				t.Fatal(err)
			}
			want := []string{"1 first\n", "1 second\n", "3 started\n"}
			if diff := cmp.Diff(want, collect(t, dir, all)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Two writers at once lose nothing, and neither writes past the limit.
func TestWritersShareAFolder(t *testing.T) {
	dir := t.TempDir()
	limits := Limits{FileBytes: 2000, Files: 1000}
	done := make(chan struct{})
	for g := range 2 {
		w := newWriter(t, dir, limits)
		go func() {
			for i := range 500 {
				w.Write(Stdout, fmt.Appendf(nil, "%d %d\n", g, i))
				w.Flush()
			}
			w.Close()
			done <- struct{}{}
		}()
	}
	<-done
	<-done
	if got := len(collect(t, dir, all)); got != 1000 {
		t.Errorf("%d lines, want 1000", got)
	}
}

func FuzzScanner(f *testing.F) {
	good := appendRecord(nil, 1, Stdout, false, []byte("hello\n"))
	f.Add(good)
	f.Add(append([]byte("garbage"), good...))
	f.Add(good[:len(good)-2])
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newScanner(bytes.NewReader(append(b, good...)), 0)
		var last Record
		for n := 0; ; n++ {
			r, err := s.next(true)
			if err != nil {
				break
			}
			if len(r.Data) > DataMax || n > len(b)+1 {
				t.Fatal("beyond the limits")
			}
			last = Record{Stream: r.Stream, Data: bytes.Clone(r.Data)}
		}
		if string(last.Data) != "hello\n" {
			// Only a record that swallows it whole may hide the good one.
			if !bytes.Contains(last.Data, good[:8]) {
				t.Fatal("the record after the damage is lost")
			}
		}
	})
}
