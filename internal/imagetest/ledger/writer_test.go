package ledger

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// served is a ledger over HTTP, and what its handler told of.
func served(t *testing.T, path string) (Client, *Writer, *error) {
	t.Helper()
	w, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	s := httptest.NewServer(Handler(w, func(err error) { failed = err }))
	t.Cleanup(func() { s.Close(); w.Close() })
	return Client{URL: s.URL, HTTP: s.Client()}, w, &failed
}

func appends(t *testing.T, c Client, n int) (last Entry) {
	t.Helper()
	for range n {
		e, err := c.Append(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if e.Number != last.Number+1 && last.Number != 0 {
			t.Fatalf("%d follows %d", e.Number, last.Number)
		}
		last = e
	}
	return last
}

// What was acknowledged is there after a start, and a torn record is not.
func TestAcknowledgedStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	c, _, _ := served(t, path)
	told := appends(t, c, 3)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("0000000000000004 01"); err != nil {
		t.Fatal(err)
	}
	f.Close()

	c, w, _ := served(t, path)
	if w.Found.Torn != 19 || w.Found.Last != told {
		t.Errorf("found %+v, told of %+v", w.Found, told)
	}
	later := appends(t, c, 1)
	s, err := c.Check(t.Context(), told.Number)
	if err != nil || s.At != told || s.Last != later || later.Start == told.Start {
		t.Errorf("holds %+v: %v", s, err)
	}
	if s, err := c.Check(t.Context(), 9); err != nil || s.At != (Entry{}) {
		t.Errorf("record 9 is %+v: %v", s.At, err)
	}
}

// Damage under a running writer is found by its next check, and ends it.
func TestDamageEndsIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	c, _, failed := served(t, path)
	appends(t, c, 3)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("X"), 3); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := c.Check(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "record 1") || !errors.Is(*failed, ErrDamaged) {
		t.Errorf("checked: %v; told %v", err, *failed)
	}
	if _, err := c.Append(t.Context()); err == nil {
		t.Error("it goes on")
	}
	if _, err := Open(path); !errors.Is(err, ErrDamaged) {
		t.Errorf("opened: %v", err)
	}
}

// A ledger that lost its end says less than was told: that is seen by the number.
func TestLostEndIsSeen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	c, w, _ := served(t, path)
	told := appends(t, c, 3)
	if err := os.Truncate(path, 2*RecordBytes); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Check(told.Number); !errors.Is(err, ErrDamaged) {
		t.Errorf("its writer: %v", err)
	}
	c, _, _ = served(t, path)
	if s, err := c.Check(t.Context(), told.Number); err != nil || s.At == told {
		t.Errorf("the next one: %+v, %v", s, err)
	}
}

// A full disk ends the writer; nothing is acknowledged.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip("SKIPPED: no /dev/full: ", err)
	}
	w := &Writer{file: full, start: start}
	defer w.Close()
	if e, err := w.Append(); err == nil || e != (Entry{}) {
		t.Errorf("appended %+v", e)
	}
	if _, err := w.Check(0); err == nil {
		t.Error("it goes on")
	}
}

func TestBadRequest(t *testing.T) {
	c, _, failed := served(t, filepath.Join(t.TempDir(), "ledger"))
	r, err := c.HTTP.Get(c.URL + "/check?at=-1")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusBadRequest || *failed != nil {
		t.Errorf("%s, %v", r.Status, *failed)
	}
}
