package installer

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"capsule/internal/disk"
)

// A disk that's broken or says nothing costs nothing but itself, however often it's
// asked for; one that's slow is waited for.
func TestDisks(t *testing.T) {
	sysfs := t.TempDir()
	for _, name := range []string{"sda", "sdb", "sdc", "sdd"} {
		file := filepath.Join(sysfs, "block", name, "size")
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("16777216\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		i := New(Options{Sysfs: sysfs})
		ends, silent := make(chan struct{}), atomic.Int32{}
		i.read = func(d disk.Device) ([]disk.Content, error) {
			switch d.Name {
			case "sda":
				silent.Add(1)
				<-ends
				return nil, errors.New("gone")
			case "sdb":
				return nil, errors.New("I/O error")
			case "sdc":
				time.Sleep(10 * time.Second) // it was asleep
			}
			return []disk.Content{photos}, nil
		}
		for range 3 {
			began := time.Now()
			list := i.Disks()
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
			if len(list) != 4 || !strings.Contains(Unfit(list[0]), "can't be read: no answer within") || !strings.Contains(Unfit(list[1]), "I/O error") {
				t.Errorf("%+v", list)
			}
			for _, c := range list[2:] {
				if c.Fault != "" || len(c.Contents) != 1 {
					t.Errorf("%s: %s, %v", c.Name, c.Fault, c.Contents)
				}
			}
		}
		if n := silent.Load(); n != 1 {
			t.Errorf("the silent disk is read %d times", n)
		}
		close(ends)
		synctest.Wait()
		if len(i.readings) > 0 {
			t.Errorf("readings stay: %v", i.readings)
		}
	})
}
