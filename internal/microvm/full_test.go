package microvm

import (
	"archive/tar"
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"capsule/internal/qemu"
	"capsule/internal/workload"
)

// A capsule whose disk is full gives its guests errors, and they go on: left to
// itself, QEMU would stop the machine.
func TestFullCapsule(t *testing.T) {
	w := newWorld(t)
	w.opts.Dir = t.TempDir()
	check(t, unix.Mount("full", w.opts.Dir, "tmpfs", 0, "size=24m"))
	t.Cleanup(func() { check(t, unix.Unmount(w.opts.Dir, unix.MNT_DETACH)) })
	w.fresh()
	in := w.instance(t, "full", "trap", "15")
	in.Resources.DiskBytes = 20 * mib
	w.run(t, in, "ready")
	check(t, unix.Mount("", w.opts.Dir, "", unix.MS_REMOUNT, "size=12m")) // others take the rest
	q, err := qemu.Dial(t.Context(), w.driver.file(recordID(in), qmpFile))
	check(t, err)
	defer q.Close()
	// The guest's memory may take all of it, so that only the end tells.
	_, _, _ = w.driver.CopyTo(t.Context(), in.ID, "/", "big", bigFile(t, 64*mib))
	check(t, w.driver.Stop(t.Context(), in.ID, sigterm, patience))
	for e := range q.Events() {
		if e.Name == "STOP" {
			t.Error("QEMU stopped the machine")
		}
	}
	w.observe(t, in.ID, workload.Ended)
	var room unix.Statfs_t
	check(t, unix.Statfs(w.opts.Dir, &room))
	if room.Bfree > 0 {
		t.Errorf("%d blocks are free: the test is none", room.Bfree)
	}
}

// bigFile is a tar stream with one file.
func bigFile(t *testing.T, size int64) *bytes.Buffer {
	t.Helper()
	var archive bytes.Buffer
	out := tar.NewWriter(&archive)
	check(t, out.WriteHeader(&tar.Header{Name: "big", Mode: 0o644, Size: size}))
	_, err := out.Write(bytes.Repeat([]byte("full"), int(size/4)))
	check(t, err)
	check(t, out.Close())
	return &archive
}
