package pid1

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"capsule/internal/watchdog"
)

// watched is a machine with a watchdog, and how often that was fed.
func watched(t *testing.T) (*machine, func() int) {
	t.Helper()
	dir := t.TempDir()
	device := filepath.Join(dir, "watchdog0")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m := &machine{log: newJournal(), dog: watchdog.New(dir)}
	m.dog.Open()
	return m, func() int {
		got, err := os.ReadFile(device)
		if err != nil {
			t.Fatal(err)
		}
		return len(got)
	}
}

// A boot step that gets on is fed for as long as it takes; one that hangs isn't.
func TestAttendFeedsProgressOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, fed := watched(t)
		var work atomic.Uint64
		hang := make(chan struct{})
		go func() {
			_ = m.attend(task{proof: work.Load, do: func() error { <-hang; return nil }})
		}()
		synctest.Wait()
		time.Sleep(watchdog.Every + time.Second) // the first look
		if fed() != 1 {
			t.Errorf("fed %d times at the beginning", fed())
		}
		for range 100 {
			before := fed()
			work.Add(1)
			time.Sleep(watchdog.Timeout - watchdog.Every + time.Second)
			if fed() == before {
				t.Fatal("starved in spite of progress")
			}
		}
		hung := fed()
		time.Sleep(time.Hour)
		if fed() != hung {
			t.Errorf("fed %d times without progress", fed()-hung)
		}
		close(hang)
	})
}

// forever is longer than anybody waits.
func forever() error { time.Sleep(20 * time.Hour); return nil }

// What hangs at the end is left in time for the machine to go down before its
// watchdog bites, and never later than a minute.
func TestAttendLeaves(t *testing.T) {
	failed := errors.New("no")
	var moving atomic.Uint64
	for name, tc := range map[string]struct {
		task task
		took time.Duration // less than one turn more
		err  string
	}{
		"over":            {task{do: func() error { time.Sleep(time.Minute); return nil }}, time.Minute, ""},
		"failed":          {task{limit: time.Hour, stall: stallMax, do: func() error { return failed }}, 0, "no"},
		"limit":           {task{limit: 7 * time.Second, do: forever}, 7 * time.Second, "no end within 7s"},
		"stands still":    {task{stall: stallMax, limit: shutdownMax, proof: func() uint64 { return 1 }, do: forever}, stallMax, "no progress for 30s"},
		"works too long":  {task{stall: stallMax, limit: shutdownMax, proof: func() uint64 { return moving.Add(1) }, do: forever}, shutdownMax, "no end within"},
		"slow, but works": {task{stall: stallMax, proof: func() uint64 { return moving.Add(1) }, do: func() error { time.Sleep(time.Hour); return nil }}, time.Hour, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m, _ := watched(t)
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				err := m.attend(tc.task)
				if took := time.Since(begin); took < tc.took || took > tc.took+watchdog.Every {
					t.Errorf("took %v, want %v", took, tc.took)
				}
				time.Sleep(24 * time.Hour) // what was left ends
				if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
					t.Errorf("got %v, want %q", err, tc.err)
				}
			})
		})
	}
	if stallMax+watchdog.Every+lastMax > watchdog.Timeout {
		t.Error("the watchdog bites before what hangs is left")
	}
}

func TestTimeOf(t *testing.T) {
	for stat, want := range map[string]uint64{
		"7 (e2fsck) R 1 7 7 0 -1 4194304 100 0 0 0 250 31 5 6 20 0 1 0 99":    281,
		"7 (a) b) 9 (c) D 1 7 7 0 -1 4194304 100 0 0 0 2 3 0 0 20 0 1 0 99":   5,
		"9 (kworker/0:1) I 2 0 0 0 -1 69238880 0 0 0 0 12 34 0 0 20 0 1 0 99": 0,
		"7 (cut": 0, "": 0, "7 (x) R 1 2": 0,
	} {
		if got := timeOf(stat); got != want {
			t.Errorf("%q: %d ticks, want %d", stat, got, want)
		}
	}
	if programTime("/proc") == 0 {
		t.Error("no program on this machine has worked")
	}
}

func TestRequestsDone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stat")
	for text, want := range map[string]uint64{
		"  10 1 2 3  20 5 6 7  0 8 9  30 10 11 12  40 13\n": 100,
		"  10 1 2 3  20 5 6 7  0 8 9\n":                     30, // before Linux 4.18
		"rubbish":                                           0,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := requestsDone(file); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	if requestsDone(file+"-none") != 0 {
		t.Error("a device that isn't there has worked")
	}
}

// The journal's file is whole, from the lines before it was there on, and nobody
// waits for its disk.
func TestJournalWaitsForNoDisk(t *testing.T) {
	dir := t.TempDir()
	j := newJournal()
	j.say("early")
	j.keep(dir)
	j.important("late")
	j.close()
	j.say("after the end")
	j.close()
	text, err := os.ReadFile(filepath.Join(dir, "pid1.log"))
	if err != nil || !strings.Contains(string(text), "early\n") || !strings.Contains(string(text), "late\n") || strings.Contains(string(text), "after") {
		t.Errorf("%q, %v", text, err)
	}
	hung := newJournal() // its file never comes
	for range 2 * waitingMax {
		hung.say("x")
	}
}

func TestReason(t *testing.T) {
	file := filepath.Join(t.TempDir(), "update", "rollback.json")
	m := &machine{}
	m.boot.Slot = "slot_b"
	for range 2 {
		if err := m.noteReason(file, `its daemon ended with "x"`); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(text), `{"slot":"slot_b","version":"`) || !strings.Contains(string(text), `"reason":"its daemon ended with \"x\"","time":"20`) {
		t.Errorf("%s, %v", text, err)
	}
	m.reason = "no /perm"
	if err := m.noteReason(file+"/none", "x"); err != nil {
		t.Errorf("in recovery mode: %v", err)
	}
}
