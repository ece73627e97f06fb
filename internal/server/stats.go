package server

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/network"
	"capsule/internal/usage"
	"capsule/internal/workload"
)

const (
	samplesAtOnce = 8               // instances that are asked
	sampleMax     = 2 * time.Second // for the answer of one: a guest may hang
)

type stats struct {
	capsulev1.UnimplementedStatsServiceServer
	Options
}

func (s *stats) Sample(ctx context.Context, _ *capsulev1.SampleRequest) (*capsulev1.SampleResponse, error) {
	return s.sample(ctx)
}

// sample reads all counters. In recovery mode nothing runs, and only the machine
// is told of.
func (o *Options) sample(ctx context.Context) (*capsulev1.SampleResponse, error) {
	machine, err := usage.Read("/")
	if err != nil {
		return nil, err
	}
	var up unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) // can't fail on Linux
	resp := &capsulev1.SampleResponse{
		Time: timestamppb.Now(), Uptime: durationpb.New(time.Duration(up.Nano())),
		Machine: &capsulev1.MachineUse{Cpus: uint32(runtime.NumCPU()), Use: &capsulev1.Use{ //nolint:gosec // processors
			Cpu: durationpb.New(machine.CPU), Memory: machine.MemoryUsed, MemoryLimit: machine.MemoryTotal,
			IoRead: machine.DiskRead, IoWritten: machine.DiskWritten,
			NetReceived: &machine.NetworkReceived, NetSent: &machine.NetworkSent,
		}},
	}
	if o.Store == nil || o.Runtime == nil {
		return resp, nil
	}
	objs, err := o.Store.List("")
	if err != nil {
		return nil, err
	}
	running, err := o.Runtime.AllRunning(ctx)
	if err != nil {
		o.Log.Warn("sample the use of workloads", "error", err) // what is known is worth an answer
	}
	traffic := o.traffic()
	slots := make(chan struct{}, samplesAtOnce)
	var all sync.WaitGroup
	for _, obj := range objs {
		if obj.GetWorkload() == nil {
			continue
		}
		use := newWorkloadUse(obj)
		resp.Workloads = append(resp.Workloads, use)
		in, runs := running[use.Name]
		if !runs || in.UID != use.Uid {
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			o.read(ctx, obj, in, traffic, use)
		})
	}
	all.Wait()
	slices.SortFunc(resp.Workloads, func(a, b *capsulev1.WorkloadUse) int { return strings.Compare(a.Name, b.Name) })
	return resp, nil
}

func newWorkloadUse(obj *capsulev1.Object) *capsulev1.WorkloadUse {
	meta := obj.GetMeta()
	return &capsulev1.WorkloadUse{
		Name: meta.GetName(), Kind: meta.GetKind(), Uid: meta.GetUid(),
		CpusLimit: obj.GetWorkload().GetSpec().GetResources().GetCpus(),
	}
}

func (o *Options) traffic() map[string]network.Traffic {
	if o.Traffic == nil {
		return nil
	}
	traffic, err := o.Traffic()
	if err != nil {
		o.Log.Warn("sample the use of workloads", "error", err)
	}
	return traffic
}

// read asks one instance.
func (o *Options) read(ctx context.Context, obj *capsulev1.Object, in workload.RunningInstance, traffic map[string]network.Traffic, use *capsulev1.WorkloadUse) {
	ctx, cancel := context.WithTimeout(ctx, sampleMax)
	defer cancel()
	use.RunningGeneration = in.Generation
	st, err := in.Driver.Stats(ctx, in.ID)
	if err != nil {
		use.Message = err.Error()
		return
	}
	use.Use = &capsulev1.Use{
		Cpu: durationpb.New(st.CPUTime), Memory: st.MemoryBytes, Pids: st.PIDs, IoRead: st.DiskRead, IoWritten: st.DiskWritten,
		MemoryLimit: uint64(max(0, obj.GetWorkload().GetSpec().GetResources().GetMemory())),
	}
	if t, ok := traffic[use.Name]; ok && obj.GetWorkload().GetSpec().GetNetwork() != "host" {
		use.Use.NetReceived, use.Use.NetSent = &t.Received, &t.Sent
	}
}
