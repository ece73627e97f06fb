package instance

import (
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/google/go-cmp/cmp"

	"capsule/internal/imagetest"
)

// Each kind sees its own; what was made before there were kinds is a container's.
func TestListOfAKind(t *testing.T) {
	client := imagetest.Containerd(t)
	for id, labels := range map[string]map[string]string{
		"old.1.1":     {LabelName: "old"},
		"web.1.1":     {LabelName: "web", LabelKind: Container},
		"vm.1.1":      {LabelName: "vm", LabelKind: MicroVM},
		"later.1.1":   {LabelName: "later", LabelKind: "Later"},
		"nobodys.1.1": {LabelKind: Container},
	} {
		_, err := client.ContainerService().Create(t.Context(), containers.Container{
			ID: id, Labels: labels, Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for kind, want := range map[string][]string{Container: {"old.1.1", "web.1.1"}, MicroVM: {"vm.1.1"}} {
		list, err := Open(client, kind, "").List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range list {
			got = append(got, c.ID)
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", kind, diff)
		}
	}
}
