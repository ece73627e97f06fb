package contexts

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// Of commands that change contexts at the same time, none undoes what another does.
func TestAtOnce(t *testing.T) {
	ca := newAuthority(t)
	for round := range 20 {
		s := &Store{t.TempDir()}
		old := ca.context(t, "kitchen", "anna", "admin", newKey(t))
		if err := s.Put(old); err != nil {
			t.Fatal(err)
		}
		next := ca.context(t, "kitchen", "anna", "admin", newKey(t))
		gone := Context{Name: "gone", Host: "h:1"}
		if err := s.Put(gone); err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				if err := s.Move("kitchen", fmt.Sprintf("10.0.0.%d:50000", 2+i)); err != nil {
					t.Error(err)
				}
			})
			all.Go(func() {
				if err := s.Move("gone", "h:2"); err != nil && !errdefs.IsNotFound(err) {
					t.Error(err)
				}
			})
			all.Go(func() {
				if _, err := s.Add(Context{Name: "attic", Host: fmt.Sprintf("h:%d", i)}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Go(func() {
			if err := s.Renew(old, next.Certificate, next.Key, time.Now()); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			if err := s.Delete("gone"); err != nil {
				t.Error(err)
			}
		})
		all.Wait()
		if c, err := s.Get("kitchen"); err != nil || c.Key != next.Key || c.Certificate != next.Certificate || c.Host == old.Host {
			t.Errorf("round %d: its new key is lost, or its move to %s: %v", round, c.Host, err)
		}
		if _, err := s.Get("gone"); !errdefs.IsNotFound(err) {
			t.Errorf("round %d: came back: %v", round, err)
		}
		hosts := map[string]bool{}
		for _, name := range []string{"attic", "attic-2", "attic-3", "attic-4"} {
			c, err := s.Get(name)
			if err != nil {
				t.Errorf("round %d: %v", round, err)
			}
			hosts[c.Host] = true
		}
		if len(hosts) != 4 {
			t.Errorf("round %d: %d of 4 new contexts", round, len(hosts))
		}
	}
}

// A renewal that ends after its context got another key takes nothing from it.
func TestRenewOfWhatWasReplaced(t *testing.T) {
	ca := newAuthority(t)
	s := &Store{t.TempDir()}
	old, next := ca.context(t, "kitchen", "anna", "admin", newKey(t)), ca.context(t, "kitchen", "anna", "admin", newKey(t))
	if err := s.Put(next); err != nil {
		t.Fatal(err)
	}
	late := ca.context(t, "kitchen", "anna", "admin", newKey(t))
	if err := s.Renew(old, late.Certificate, late.Key, time.Now()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("renewed: %v", err)
	}
	if c, err := s.Get("kitchen"); err != nil || c.Key != next.Key {
		t.Errorf("its key is lost: %v", err)
	}
}

const holdLock = "CAPSULE_TEST_HOLD_LOCK"

// TestHoldLock is another program, for TestKilledLeavesNoLock.
func TestHoldLock(t *testing.T) {
	dir := os.Getenv(holdLock)
	if dir == "" {
		t.Skip("started by another test")
	}
	err := (&Store{dir}).locked(func() error {
		fmt.Println("locked")
		time.Sleep(time.Minute)
		return nil
	})
	t.Fatal(err)
}

// A program that has the lock keeps others out, and leaves none when it is killed.
func TestKilledLeavesNoLock(t *testing.T) {
	s := &Store{t.TempDir()}
	other := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHoldLock$") //nolint:gosec // it is this very program
	other.Env = append(os.Environ(), holdLock+"="+s.dir)
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "locked"; {
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := lock(f, 50*time.Millisecond); !errdefs.IsUnavailable(err) {
		t.Errorf("locked twice: %v", err)
	}
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = other.Wait() // it was killed
	if err := s.Put(Context{Name: "a", Host: "h:1"}); err != nil {
		t.Error(err)
	}
}
