package server

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

const mib = 1 << 20

func sized(kind, name string, memory, disk int64) *capsulev1.Object {
	o := web(name)
	o.Meta.Kind = kind
	o.GetWorkload().Spec.Ports = nil
	o.GetWorkload().Spec.Resources = &capsulev1.Resources{Memory: memory, Disk: disk}
	return o
}

// What no machine of this size can give is refused, and changes nothing; what is too
// much only together is accepted, and said once.
func TestApplyKnowsTheRoom(t *testing.T) {
	b := newBox(t, func(o *Options) {
		o.Kinds = []string{manifest.KindContainer, manifest.KindMicroVM}
		o.Room = func() Room { return Room{Memory: 1000 * mib, Disk: 4000 * mib} }
		o.MachineMemory = func(limit int64) int64 {
			if limit == 0 {
				limit = 512 * mib
			}
			return limit + 100*mib
		}
	})
	for _, test := range []struct {
		object *capsulev1.Object
		want   string
	}{
		{sized("Container", "a", 1001*mib, 0), `Container "a": resources.memory: 1001MiB can't be had on this machine, which has 1000 MiB for workloads`},
		{sized("MicroVM", "a", 901*mib, 0), `MicroVM "a": resources.memory: 901MiB and 100 MiB for its kernel can't be had`},
		{sized("Container", "a", 0, 4001*mib), `Container "a": resources.disk: 4001MiB is more than all of /perm, which has 4000 MiB; keep large data in a volume`},
	} {
		_, err := b.apply(t, sized("Container", "fine", 0, 0), test.object)
		if s := status.Convert(err); s.Code() != codes.InvalidArgument || !strings.Contains(s.Message(), test.want) {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
	if objs, err := b.store.List(""); err != nil || len(objs) != 0 {
		t.Errorf("left %v, %v", objs, err)
	}
	for _, o := range []*capsulev1.Object{sized("Container", "a", 1000*mib, 4000*mib), sized("Container", "free", 0, 0)} {
		if got, err := b.apply(t, o); err != nil || len(got.Results[0].Warnings) > 0 {
			t.Errorf("%v, %v", got, err)
		}
	}
	got, err := b.apply(t, sized("Container", "free", 0, 0), sized("MicroVM", "b", 0, 0), sized("Container", "c", 8*mib, 0))
	if err != nil {
		t.Fatal(err)
	}
	const want = "the memory limits of all workloads are 1620 MiB together, and there are 1000 MiB for them"
	if w := got.Results[1].Warnings; len(w) != 1 || !strings.Contains(w[0], want) {
		t.Errorf("%q", w)
	}
	for _, i := range []int{0, 2} {
		if w := got.Results[i].Warnings; len(w) > 0 {
			t.Errorf("said again: %q", w)
		}
	}
}
