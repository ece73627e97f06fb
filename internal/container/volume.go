package container

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"time"

	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"capsule/internal/workload"
)

// remount writes into the spec of a prepared instance what it mounts, and where its
// secrets are: only a start knows that.
func (d *Driver) remount(ctx context.Context, in workload.Instance) error {
	c, err := d.records.Get(ctx, in.ID)
	if err != nil {
		return err
	}
	spec := &specs.Spec{}
	if err := typeurl.UnmarshalTo(c.Spec, spec); err != nil {
		return fmt.Errorf("read its spec: %w", err)
	}
	want, notes := append(mounts(in), d.fileMounts(in)...), d.annotations(in)
	if reflect.DeepEqual(spec.Mounts, want) && maps.Equal(spec.Annotations, notes) {
		return nil
	}
	spec.Mounts, spec.Annotations = want, notes
	if c.Spec, err = typeurl.MarshalAnyToProto(spec); err != nil {
		return err
	}
	_, err = d.client.ContainerService().Update(ctx, c, "spec")
	return err
}

// Freeze has nothing to do: the capsule's own kernel mounts a container's
// volumes, and holds their writers itself while it makes a snapshot.
func (d *Driver) Freeze(context.Context, workload.ID, time.Duration) (thaw func(), err error) {
	return func() {}, nil
}

// Grown has nothing to do: a container sees the file system that the capsule has
// mounted and grown.
func (d *Driver) Grown(context.Context, workload.ID, string, int64) error { return nil }
