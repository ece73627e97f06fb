package container

import (
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/google/go-cmp/cmp"

	"capsule/internal/process"
	"capsule/internal/workload"
)

func TestWritable(t *testing.T) {
	mounts := []mount.Mount{
		{Type: "erofs", Source: "/l/layer.erofs", Options: []string{"ro"}},
		{Type: "format/overlay", Options: []string{"workdir=/s/1/work", "upperdir=/s/1/fs", "lowerdir={{ mount 0 }}"}},
	}
	if diff := cmp.Diff([]string{"/s/1/work", "/s/1/fs"}, writable(mounts)); diff != "" {
		t.Error(diff)
	}
	if err := new(Driver).bound("x", mounts[:1], workload.Resources{}); err == nil {
		t.Error("a view has a writable layer")
	}
}

// One without a limit goes first when memory is gone.
func TestGoesFirst(t *testing.T) {
	var in workload.Instance
	if p := specProcess(in, process.Account{}); *p.OOMScoreAdj != oomUnlimited {
		t.Errorf("without a limit: %d", *p.OOMScoreAdj)
	}
	in.Resources.MemoryBytes = 1 << 30
	if p := specProcess(in, process.Account{}); *p.OOMScoreAdj != oomLimited {
		t.Errorf("with a limit: %d", *p.OOMScoreAdj)
	}
}

// A file that several workloads are shown is no way from one to another.
func TestSharedFilesAreReadOnly(t *testing.T) {
	in := workload.Instance{Network: workload.Network{ResolvConf: "/r", Hosts: "/h"}}
	for mode, hosts := range map[string]string{"bridge": "rw", "none": "rw", "host": "ro"} {
		in.Network.Mode = mode
		got := map[string]string{}
		for _, m := range mounts(in) {
			if slices.Contains([]string{"/r", "/h"}, m.Source) {
				got[m.Source] = m.Options[len(m.Options)-1]
			}
		}
		if diff := cmp.Diff(map[string]string{"/r": "ro", "/h": hosts}, got); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
	}
}
