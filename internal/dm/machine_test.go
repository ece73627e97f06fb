package dm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// disk is the data disk of a machine that test/vmexec boots.
const disk = "/dev/vdc"

func TestDevice(t *testing.T) {
	if os.Getenv("CAPSULE_TEST_MACHINE") == "" {
		t.Skip("needs device mapper and a disk: run it by test/vmexec")
	}
	const name = "capsule-test"
	text := bytes.Repeat([]byte("data"), 1024)
	if err := os.WriteFile(disk, text, 0); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(disk, &st); err != nil {
		t.Fatal(err)
	}
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	linear := Target{Sectors: 8, Kind: "linear", Params: number + " 0"}

	if _, err := c.Status(name); !errdefs.IsNotFound(err) {
		t.Errorf("status of none: %v", err)
	}
	if _, err := c.Create(name, true, Target{Sectors: 8, Kind: "linear", Params: "no table"}); err == nil {
		t.Error("made of a table that is none")
	}
	changed := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Watch(ctx, func(*Control) error { changed <- struct{}{}; return nil })
	}()
	<-changed // the first look
	d, err := c.Create(name, true, linear)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(time.Minute):
		t.Error("no event of a new device")
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("watch ended: %v", err)
	}
	if got, err := os.ReadFile(d.Path()); err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := os.WriteFile(d.Path(), text, 0); err == nil {
		t.Error("a read-only device was written to")
	}
	if table, err := c.Table(name); err != nil || len(table.Targets) != 1 || table.Targets[0] != linear || !table.ReadOnly {
		t.Errorf("%+v, %v", table, err)
	}
	for _, step := range []struct {
		do        func(string) error
		suspended bool
	}{{c.Suspend, true}, {c.Unload, true}, {c.Resume, false}} {
		if err := step.do(name); err != nil {
			t.Fatal(err)
		}
		if d, err := c.Status(name); err != nil || d.Suspended != step.suspended {
			t.Errorf("%+v, %v", d, err)
		}
	}
	if all, err := c.Names(); err != nil || !slices.Contains(all, name) {
		t.Error(all, err)
	}
	if err := c.Remove(name); err != nil {
		t.Error(err)
	}
	if all, err := c.Names(); err != nil || slices.Contains(all, name) {
		t.Error(all, err)
	}
}
