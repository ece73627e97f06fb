package microvm

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"

	"capsule/internal/instance"
	"capsule/internal/workload"
)

const (
	runtimeName = "capsule.microvm"

	mib           = 1 << 20
	memoryMin     = 16 * mib  // of a limit: what a payload needs to be started at all
	memoryDefault = 512 * mib // for the payload, without a limit
	memoryGuest   = 80 * mib  // for the guest's kernel and agent, beside the payload's
	pagesPart     = 64        // of all memory: the 64 bytes that a kernel keeps of each page of 4 KiB
	memoryMax     = 1 << 42   // what a machine can be told to have
	mountsMax     = 16        // volumes
	numberMax     = 10_000    // machines at a time

	cpuPeriod   = 100_000 // microseconds
	cpuQuotaMin = 1000    // microseconds, the kernel's least
)

// Prepare makes the record of an instance, a view of its image and its writable
// disk. It looks into the image, so that one without the user or the program is
// refused while the old one serves.
func (d *Driver) Prepare(ctx context.Context, in workload.Instance) error {
	record := instance.RecordID(in.ID)
	defer d.records.Lock(record)()
	_, err := d.records.Get(ctx, in.ID)
	if errdefs.IsNotFound(err) {
		err = d.prepare(ctx, record, in)
	}
	if err != nil {
		return fmt.Errorf("prepare workload %q: %w", in.Name, err)
	}
	return nil
}

func (d *Driver) prepare(ctx context.Context, record string, in workload.Instance) (err error) {
	if err := fits(in, processors()); err != nil {
		return err
	}
	// The lease keeps snapshots from the garbage collector until the record
	// refers to them.
	ctx, release, err := d.client.WithLease(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = release(context.WithoutCancel(ctx)) }()
	began := time.Now()
	if _, err := d.records.Check(ctx, in); err != nil {
		return err
	}
	checked := time.Now()
	if _, err := d.records.Snapshots().View(ctx, record, in.Image.ChainID); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(d.diskDir(record))
		}
	}()
	if err := os.MkdirAll(d.diskDir(record), 0o700); err != nil {
		return err
	}
	bytes, _, err := instance.DiskBound(in.Resources, d.diskDir(record))
	if err != nil {
		return err
	}
	if err := makeDisk(ctx, d.disk(record), bytes); err != nil {
		return err
	}
	if err := d.create(ctx, in); err != nil {
		return err
	}
	slog.Info("prepared workload", "name", in.Name, "generation", in.Generation,
		"check", took(began, checked), "disk", took(checked, time.Now()))
	return nil
}

// fits tells what of an instance a machine can't have.
func fits(in workload.Instance, processors int) error {
	r := in.Resources
	switch {
	case len(in.Args) == 0:
		return refuse("no program is named, neither by the image nor by the manifest")
	case in.Network.Mode == "host":
		return refuse("network: host is not to be had in a microVM, which has a network of its own")
	case r.MemoryBytes > 0 && r.MemoryBytes < memoryMin:
		return refuse("memory: %d KiB is too little for a microVM, which needs at least %d MiB for its program", r.MemoryBytes>>10, memoryMin/mib)
	case r.MemoryBytes > memoryMax:
		return refuse("memory: %d MiB is more than a microVM can have", r.MemoryBytes/mib)
	case vcpus(r) > processors:
		return refuse("cpus: %d processors are more than the %d of the capsule", vcpus(r), processors)
	case len(in.Mounts) > mountsMax:
		return refuse("%d volumes are more than the %d that a microVM takes", len(in.Mounts), mountsMax)
	}
	return nil
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// create writes the record with a number that no other has.
func (d *Driver) create(ctx context.Context, in workload.Instance) error {
	d.numbering.Lock()
	defer d.numbering.Unlock()
	number, err := d.freeNumber(ctx)
	if err != nil {
		return err
	}
	spec, err := json.Marshal(sizes(in.Resources))
	if err != nil {
		return err
	}
	return d.records.Create(ctx, in, containers.Container{
		Labels:  map[string]string{instance.LabelNumber: strconv.Itoa(number)},
		Runtime: containers.RuntimeInfo{Name: runtimeName},
		Spec:    &anypb.Any{TypeUrl: runtimeName, Value: spec},
	})
}

// size is what a machine is made of.
type size struct {
	MemoryMiB int64
	VCPUs     int
}

func sizes(r workload.Resources) size {
	memory := r.MemoryBytes
	if memory <= 0 {
		memory = memoryDefault
	}
	memory += memoryGuest + memory/pagesPart
	return size{MemoryMiB: (memory + mib - 1) / mib, VCPUs: vcpus(r)}
}

// Memory is what a machine has whose payload has that limit in bytes, its own kernel
// included; 0 is the default.
func Memory(limit int64) int64 {
	return sizes(workload.Resources{MemoryBytes: limit}).MemoryMiB * mib
}

// vcpus are as many as a limit needs, one without a limit.
func vcpus(r workload.Resources) int { return max(1, int((r.CPUMillis+999)/1000)) }

// freeNumber is the lowest that no record has.
func (d *Driver) freeNumber(ctx context.Context) (int, error) {
	all, err := d.records.List(ctx)
	if err != nil {
		return 0, err
	}
	used := map[string]bool{}
	for _, c := range all {
		used[c.Labels[instance.LabelNumber]] = true
	}
	for n := 1; n <= numberMax; n++ {
		if !used[strconv.Itoa(n)] {
			return n, nil
		}
	}
	return 0, fmt.Errorf("more than %d microVMs: %w", numberMax, errdefs.ErrResourceExhausted)
}

func (d *Driver) diskDir(record string) string { return filepath.Join(d.opts.Dir, record) }
func (d *Driver) disk(record string) string    { return filepath.Join(d.diskDir(record), "disk.img") }

// took is a time for the log.
func took(from, to time.Time) time.Duration { return to.Sub(from).Round(time.Millisecond) }
