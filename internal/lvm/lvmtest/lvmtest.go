// Package lvmtest gives tests the volume group of a capsule with a real pool, on
// the empty data disk of a machine that test/vmexec boots. Elsewhere such a test is
// skipped.
package lvmtest

import (
	"os"
	"sync"
	"testing"
	"time"

	"capsule/internal/lvm"
	"capsule/internal/run"
)

const (
	// Disk is vmexec's data disk, which is sparse.
	Disk = "/dev/vdc"

	metadata   = 16 << 20
	commandMax = 2 * time.Minute
)

var group struct {
	sync.Mutex
	there          bool
	pool, metadata int64 // bytes of the pool that is there
}

// Pool gives the test an empty pool with room for so many bytes, in whole extents.
// The group is made once for the test binary, the pool when its size isn't the one
// it has; else volumes of earlier tests are removed, which their tests must have
// unmounted. Tests that use it can't run in parallel.
func Pool(t testing.TB, sizeBytes int64) {
	t.Helper()
	PoolWithMetadata(t, sizeBytes, metadata)
}

// PoolWithMetadata is Pool with a size of the pool's metadata, to fill that.
func PoolWithMetadata(t testing.TB, sizeBytes, metadataBytes int64) {
	t.Helper()
	if os.Getenv("CAPSULE_TEST_MACHINE") == "" {
		t.Skip("needs device mapper and a disk: run it by test/vmexec")
	}
	group.Lock()
	defer group.Unlock()
	if !group.there {
		if err := lvm.Setup(Disk); err != nil {
			t.Fatal(err)
		}
		command(t, "vgcreate", "-y", lvm.Group, Disk)
		group.there = true
	}
	size, meta := lvm.RoundUp(sizeBytes), lvm.RoundUp(metadataBytes)
	if group.pool == size && group.metadata == meta {
		empty(t)
		return
	}
	if group.pool != 0 {
		group.pool = 0
		command(t, "lvremove", "-y", "-f", lvm.Group+"/"+lvm.Pool)
	}
	if err := lvm.CreatePool(t.Context(), uint64(size), uint64(meta)); err != nil {
		t.Fatal(err)
	}
	group.pool, group.metadata = size, meta
}

// Changed says that a test changed the pool itself, so that the next one gets a new
// one.
func Changed() {
	group.Lock()
	defer group.Unlock()
	group.metadata = 0
}

func empty(t testing.TB) {
	t.Helper()
	all, err := lvm.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, v := range all {
		names = append(names, v.Name)
	}
	if err := lvm.RemoveThin(t.Context(), names...); err != nil {
		t.Fatal("remove volumes of an earlier test:", err)
	}
}

// Command runs an lvm command of the test's own.
func Command(t testing.TB, args ...string) []byte {
	t.Helper()
	return command(t, args...)
}

func command(t testing.TB, args ...string) []byte {
	t.Helper()
	out, err := run.Output(t.Context(), commandMax, "lvm", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
