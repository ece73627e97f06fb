package microvm

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"capsule/internal/workload"
)

// What a machine can't have is refused with the reason.
func TestFits(t *testing.T) {
	for _, tc := range []struct {
		change func(*workload.Instance)
		want   string // part of the refusal
	}{
		{func(*workload.Instance) {}, ""},
		{func(in *workload.Instance) { in.Args = nil }, "no program"},
		{func(in *workload.Instance) { in.Network.Mode = "host" }, "network: host"},
		{func(in *workload.Instance) { in.Resources.MemoryBytes = memoryMin }, ""},
		{func(in *workload.Instance) { in.Resources.MemoryBytes = memoryMin - 1 }, "at least 16 MiB"},
		{func(in *workload.Instance) { in.Resources.MemoryBytes = memoryMax + 1 }, "memory"},
		{func(in *workload.Instance) { in.Resources.CPUMillis = 4000 }, ""},
		{func(in *workload.Instance) { in.Resources.CPUMillis = 4001 }, "5 processors are more than the 4"},
		{func(in *workload.Instance) { in.Mounts = make([]workload.Mount, mountsMax) }, ""},
		{func(in *workload.Instance) { in.Mounts = make([]workload.Mount, mountsMax+1) }, "volumes"},
	} {
		in := workload.Instance{Args: []string{"x"}}
		tc.change(&in)
		err := fits(in, 4)
		if tc.want == "" && err != nil || tc.want != "" && (!errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, tc := range []struct {
		in   workload.Resources
		want size
	}{
		{workload.Resources{}, size{MemoryMiB: 512 + 8 + 80, VCPUs: 1}},
		{workload.Resources{MemoryBytes: 100<<20 + 1, CPUMillis: 1}, size{MemoryMiB: 182, VCPUs: 1}},
		{workload.Resources{MemoryBytes: 1 << 30, CPUMillis: 1001}, size{MemoryMiB: 1024 + 16 + 80, VCPUs: 2}},
	} {
		if got := sizes(tc.in); got != tc.want {
			t.Errorf("%+v: %+v, want %+v", tc.in, got, tc.want)
		}
	}
}

func TestLimits(t *testing.T) {
	r := workload.Resources{MemoryBytes: 64 << 20, CPUMillis: 1500}
	want := map[string]string{
		"memory.max": "286261248", "memory.swap.max": "0", "memory.oom.group": "1",
		"cpu.max": "150000 100000", "pids.max": "128",
	}
	if diff := cmp.Diff(want, limits(sizes(r), r)); diff != "" {
		t.Error(diff)
	}
	for millis, want := range map[int64]string{0: "max 100000", 1: "1000 100000"} {
		r := workload.Resources{CPUMillis: millis}
		if got := limits(sizes(r), r)["cpu.max"]; got != want {
			t.Errorf("%d: cpu.max %q, want %q", millis, got, want)
		}
	}
}

// The shapes that containerd's erofs snapshotter gives a view.
func TestLayerFiles(t *testing.T) {
	one := mount.Mount{Type: "erofs", Source: "/s/1/layer.erofs", Options: []string{"ro", "loop"}}
	two := mount.Mount{Type: "erofs", Source: "/s/2/layer.erofs", Options: []string{"ro", "loop"}}
	flat := mount.Mount{Type: "erofs", Source: "/s/2/fsmeta.erofs", Options: []string{"ro", "loop", "device=/s/1/layer.erofs"}}
	overlay := mount.Mount{Type: "format/overlay", Source: "overlay", Options: []string{"lowerdir={{ overlay 0 1 }}"}}
	for name, tc := range map[string]struct {
		mounts []mount.Mount
		want   []string
	}{
		"one layer":  {[]mount.Mount{one}, []string{one.Source}},
		"two layers": {[]mount.Mount{two, one, overlay}, []string{one.Source, two.Source}},
		"flat":       {[]mount.Mount{flat}, nil},
		"no erofs":   {[]mount.Mount{{Type: "bind", Source: "/s/1/fs"}}, nil},
	} {
		got, err := layerFiles(tc.mounts)
		if diff := cmp.Diff(tc.want, got); diff != "" || (tc.want == nil) != errors.Is(err, errdefs.ErrNotImplemented) {
			t.Errorf("%s: %v, %s", name, err, diff)
		}
	}
}
