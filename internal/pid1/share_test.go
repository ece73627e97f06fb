package pid1

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestShares(t *testing.T) {
	var got []string
	for _, s := range shares(1024 * mib) {
		got = append(got, strings.TrimPrefix(s.file, groupRoot+"/capsule/")+" "+s.value)
	}
	want := []string{
		"init/memory.min 33554432", "init/cpu.weight 1000",
		"serve/memory.min 100663296", "serve/cpu.weight 1000",
		"containerd/memory.min 67108864", "containerd/cpu.weight 500",
		"shims/memory.min 50331648", "shims/cpu.weight 100",
		"memory.min 251658240", "apps/memory.max 905969664", "apps/pids.max 122880",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Workloads have the most of any machine, and never all.
func TestForWorkloads(t *testing.T) {
	for memory, want := range map[uint64]uint64{
		128 * mib: 64 * mib, 512 * mib: 368 * mib, 8192 * mib: 7808 * mib, 65536 * mib: 64512 * mib,
	} {
		if got := forWorkloads(memory); got != want {
			t.Errorf("of %d MiB: %d MiB, want %d", memory/mib, got/mib, want/mib)
		}
	}
}
