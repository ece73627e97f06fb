package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/quota"
)

func open(t *testing.T, dir string) *Log {
	t.Helper()
	l, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// at is the nth second of the tests' day.
func at(n int) time.Time { return time.Date(2026, 1, 31, 8, 0, n, 0, time.UTC) }

func record(n int, object string) Record {
	return Record{Time: at(n), Operator: "ann", Method: "ObjectService/Apply", Object: object, Code: "OK"}
}

// objects are what the records of a query are about.
func objects(t *testing.T, l *Log, q Query) string {
	t.Helper()
	var list []string
	if err := l.Read(t.Context(), q, func(r Record) error {
		list = append(list, r.Object)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return strings.Join(list, " ")
}

var all = Query{Tail: -1}

func TestRead(t *testing.T) {
	l := open(t, t.TempDir())
	l.Changed(record(1, "a"))
	l.Refused(record(2, "b"), "")
	l.Refused(record(3, "c"), "")
	l.Changed(record(4, "d"))
	l.Changed(record(2, "e")) // the clock was set back
	for _, c := range []struct {
		name  string
		query Query
		want  string
	}{
		{"all", all, "a b c d e"},
		{"the last two", Query{Tail: 2}, "d e"},
		{"none", Query{Tail: 0}, ""},
		{"more than there are", Query{Tail: 1 << 62}, "a b c d e"},
		{"since", Query{Tail: -1, Since: at(3)}, "c d"},
		{"the last since", Query{Tail: 1, Since: at(2)}, "e"},
	} {
		if got := objects(t, l, c.query); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// What is written is there for the next daemon, also after a cut in the middle of
// a line, and after a block that never came to the disk.
func TestReopen(t *testing.T) {
	for name, left := range map[string]string{
		"in order": "", "half a record": `{"time":"2026-01-31T08`, "zeros": strings.Repeat("\x00", 5000),
		"a long line": strings.Repeat("x", 3*lineMax), "another's line": "hello\n", "no record": "{}\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, dir)
			l.Changed(record(1, "a"))
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(filepath.Join(dir, "changes.log"), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString(left); err != nil {
				t.Fatal(err)
			}
			f.Close()
			l = open(t, dir)
			l.Changed(record(2, "b"))
			l.Changed(record(3, "c"))
			if got := objects(t, l, all); got != "a b c" {
				t.Errorf("read %q", got)
			}
		})
	}
}

// The oldest go, in whole files; refusals never push out changes.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	l.changes.most, l.refusals.most = 2000, 1000
	l.refused = quota.New(0, 1000)
	l.Changed(record(0, "first"))
	for i := range 100 {
		l.Refused(record(i, fmt.Sprintf("no%d", i)), "")
	}
	if got := objects(t, l, all); !strings.HasPrefix(got, "first ") || !strings.HasSuffix(got, " no99") {
		t.Errorf("after many refusals: %q", got)
	}
	for i := range 100 {
		l.Changed(record(i, fmt.Sprintf("yes%d", i)))
	}
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	var kept int64
	for _, n := range names {
		info, err := os.Stat(n)
		if err != nil {
			t.Fatal(err)
		}
		kept += info.Size()
		if info.Size() > 2000 || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, mode %v", n, info.Size(), info.Mode())
		}
	}
	if len(names) != 2*Files || kept > 4*2000+4*1000 {
		t.Errorf("%d bytes in %q", kept, names)
	}
	got := strings.Fields(objects(t, l, all))
	changed := slices.DeleteFunc(got, func(s string) bool { return strings.HasPrefix(s, "no") })
	if n := len(changed); n < 20 || changed[n-1] != "yes99" || changed[0] != fmt.Sprintf("yes%d", 100-n) {
		t.Errorf("%d changes: %q", n, changed)
	}
}

// A flood of refusals is counted, not written.
func TestFlood(t *testing.T) {
	l := open(t, t.TempDir())
	for i := range 50 * refusalsBurst {
		l.Refused(record(i, "no"), "")
	}
	l.Changed(record(1, "yes"))
	l.refused = quota.New(0, 1000)
	l.Refused(record(100, "last"), "")
	var list []Record
	if err := l.Read(t.Context(), all, func(r Record) error { list = append(list, r); return nil }); err != nil {
		t.Fatal(err)
	}
	n, counted := len(list), 0
	for _, r := range list {
		counted += 1 + r.Lost
	}
	if n > 2*refusalsBurst || counted != 50*refusalsBurst+2 {
		t.Errorf("%d records for %d calls, of %d", n, counted, 50*refusalsBurst+2)
	}
}

// Calls that come to nothing push no change out, however many one operator makes, and
// hide nobody else's; what has no record is counted.
func TestTries(t *testing.T) {
	l := open(t, t.TempDir())
	l.changes.most = 16 << 10
	keys := 0
	of := func(operator, object string) Record {
		r := record(1, object)
		keys++
		r.Operator, r.Key, r.Code = operator, fmt.Sprint(keys), "InvalidArgument" // a new key each time
		return r
	}
	l.Changed(record(0, "first"))
	for range 100 * triesBurst {
		l.Tried(of("ben", "ben"))
	}
	l.Tried(of("ann", "ann"))
	l.Changed(of("ben", "done")) // whatever else he did
	got, calls := strings.Fields(objects(t, l, all)), 0
	if err := l.Read(t.Context(), all, func(r Record) error { calls += 1 + r.Lost; return nil }); err != nil {
		t.Fatal(err)
	}
	if n := len(got); got[0] != "first" || got[n-2] != "ann" || got[n-1] != "done" || n > 2*triesBurst {
		t.Errorf("%d records: %q", n, got)
	}
	if want := 100*triesBurst + 3; calls != want {
		t.Errorf("%d calls are told of, want %d", calls, want)
	}
}

// A turn that was cut anywhere leaves what was there, and the next one works.
func TestRotationIsCut(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	l.Changed(record(1, "a"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(l.changes.path(0), l.changes.path(2)); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir)
	l.Changed(record(2, "b"))
	l.changes.most = 1
	l.Changed(record(3, "c"))
	if got := objects(t, l, all); got != "a b c" {
		t.Errorf("read %q", got)
	}
}

func TestFollow(t *testing.T) {
	l := open(t, t.TempDir())
	l.changes.most = 400 // turns under the follower
	l.Changed(record(1, "old"))
	l.Changed(record(2, "tail"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got, ended := make(chan string), make(chan error, 1)
	go func() {
		ended <- l.Read(ctx, Query{Tail: 1, Follow: true}, func(r Record) error {
			got <- r.Object
			return nil
		})
	}()
	if o := <-got; o != "tail" {
		t.Errorf("first %q", o)
	}
	for i := range 20 {
		want := fmt.Sprint("new", i)
		if i%2 == 0 {
			l.Changed(record(i, want))
		} else {
			l.Refused(record(i, want), "")
		}
		if o := <-got; o != want {
			t.Errorf("got %q, want %q", o, want)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// Nothing between what was there and what comes is missed, or given twice.
func TestFollowWithoutGap(t *testing.T) {
	l := open(t, t.TempDir())
	const most = 200
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range most {
			l.Changed(record(i, fmt.Sprint(i)))
		}
	})
	defer wg.Wait()
	next := 0
	err := l.Read(t.Context(), Query{Tail: -1, Follow: true}, func(r Record) error {
		if r.Object != fmt.Sprint(next) {
			t.Errorf("got %s, want %d", r.Object, next)
		}
		if next++; next == most {
			return context.Canceled
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Who reads too slowly is told, and stops nobody.
func TestSlowFollower(t *testing.T) {
	l := open(t, t.TempDir())
	l.Changed(record(0, "x"))
	stuck, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- l.Read(t.Context(), Query{Tail: -1, Follow: true}, func(Record) error {
			<-stuck
			return nil
		})
	}()
	for following := false; !following; {
		l.mu.Lock()
		following = len(l.followers) == 1
		l.mu.Unlock()
	}
	for i := range queueMax + 2 {
		l.Changed(record(i, "y"))
	}
	close(stuck)
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "faster than it was read") {
		t.Errorf("ended with %v", err)
	}
}

// full is a folder on a disk with room for some pages.
func full(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skipf("SKIPPED: needs to mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// A full disk stops no call, and the first record that fits again tells how many
// were lost.
func TestFullDisk(t *testing.T) {
	dir := full(t)
	var said strings.Builder
	l, err := Open(filepath.Join(dir, "audit"), slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	filler := filepath.Join(dir, "filler")
	l.Changed(record(1, "a"))
	if err := os.WriteFile(filler, make([]byte, 16<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filled: %v", err)
	}
	long := record(2, strings.Repeat("b", wordMax))
	for l.changes.lost < 3 {
		l.Changed(long)
	}
	if n := strings.Count(said.String(), "can't be written"); n != 1 {
		t.Errorf("said %d times: %s", n, said.String())
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	l.Changed(record(3, "c"))
	l.Changed(record(4, "d"))
	var list []Record
	if err := l.Read(t.Context(), all, func(r Record) error { list = append(list, r); return nil }); err != nil {
		t.Fatal(err)
	}
	n := len(list)
	if n < 3 || list[0].Object != "a" || list[n-2].Object != "c" || list[n-2].Lost != 3 || list[n-1].Lost != 0 {
		t.Errorf("read %+v", list)
	}
}

// A record is on the disk soon, without anybody's asking, and in its file at once.
func TestSync(t *testing.T) {
	l := open(t, t.TempDir())
	l.Changed(record(1, "a"))
	if data, err := os.ReadFile(l.changes.path(0)); err != nil || strings.Count(string(data), "\n") != 1 {
		t.Errorf("in the file: %q, %v", data, err)
	}
	l.mu.Lock()
	waiting := l.timer != nil
	l.mu.Unlock()
	if !waiting {
		t.Error("no sync is due")
	}
	l.sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		t.Error("a sync is due after all was synced")
	}
}

// The longest record fits in the longest line that is read.
func TestBounds(t *testing.T) {
	long := strings.Repeat("\x01", 1<<16)
	r := Record{Operator: long, Key: long, From: long, Method: long, Object: long, Code: long, Message: strings.Repeat("é", 1<<16), Lost: 1 << 62, Duration: 1 << 62}
	data, err := json.Marshal(r.bounded())
	if err != nil || len(data) >= lineMax {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	if m := r.bounded().Message; len(m) > textMax || !strings.HasSuffix(m, "é…") {
		t.Errorf("message of %d bytes: %q", len(m), m[len(m)-8:])
	}
	l := open(t, t.TempDir())
	l.Changed(r)
	if got := objects(t, l, all); len(got) == 0 {
		t.Error("not read")
	}
}

// What must not be written is read all the same, before what comes meanwhile, and
// stays as it is. It may be damaged, or not there at all.
func TestBeside(t *testing.T) {
	for name, c := range map[string]struct{ left, want string }{
		"in order": {"", "a b c"}, "half a record": {`{"time":"2026`, "a b c"}, "nothing": {"-", "b c"},
	} {
		t.Run(name, func(t *testing.T) {
			earlier, dir := t.TempDir(), t.TempDir()
			if c.left != "-" {
				l := open(t, earlier)
				l.Changed(record(1, "a"))
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				f, err := os.OpenFile(filepath.Join(earlier, "changes.log"), os.O_WRONLY|os.O_APPEND, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteString(c.left); err != nil {
					t.Fatal(err)
				}
				f.Close()
			} else if err := os.Remove(earlier); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadFile(filepath.Join(earlier, "changes.log"))
			for i, object := range []string{"b", "c"} { // the daemon is started again
				l, err := OpenBeside(earlier, dir, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				l.Changed(record(2+i, object))
				if i == 1 {
					if got := objects(t, l, all); got != c.want {
						t.Errorf("read %q, want %q", got, c.want)
					}
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if after, _ := os.ReadFile(filepath.Join(earlier, "changes.log")); string(after) != string(before) {
				t.Errorf("what is only read was changed: %q", after)
			}
		})
	}
}

func TestClosed(t *testing.T) {
	l := open(t, t.TempDir())
	l.Changed(record(1, "a"))
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	l.Changed(record(2, "b")) // dropped
	if err := l.Read(t.Context(), all, func(Record) error { return nil }); err == nil {
		t.Error("read of a closed log")
	}
}
