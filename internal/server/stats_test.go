package server

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/network"
	"capsule/internal/workload"
)

// countingDriver tells of each instance by its name.
type countingDriver struct{ workload.Driver }

func (countingDriver) Stats(ctx context.Context, id workload.ID) (workload.Stats, error) {
	switch id.Name {
	case "broken":
		return workload.Stats{}, errors.New("no such group")
	case "hangs":
		<-ctx.Done()
		return workload.Stats{}, ctx.Err()
	}
	return workload.Stats{MemoryBytes: 1 << 20, CPUTime: time.Second, PIDs: 3, DiskRead: 10, DiskWritten: 20}, nil
}

// sampled is a box with workloads that are counted, one of them limited.
func sampled(t *testing.T, names ...string) *box {
	t.Helper()
	all := map[string]workload.RunningInstance{}
	b := newBox(t, func(o *Options) {
		o.Runtime = hostDriver{all: all}
		o.LastPass = func() time.Duration { return 250 * time.Millisecond }
		o.Traffic = func() (map[string]network.Traffic, error) {
			return map[string]network.Traffic{"web": {Received: 100, Sent: 200}, "host": {Received: 1}}, nil
		}
	})
	for _, name := range names {
		obj := web(name)
		obj.GetWorkload().Spec.Resources = &capsulev1.Resources{Memory: 64 << 20, Cpus: 500}
		if name == "host" {
			obj.GetWorkload().Spec.Network = "host"
		}
		if _, err := b.apply(t, obj); err != nil {
			t.Fatal(err)
		}
		o, err := b.store.Get("", name)
		if err != nil {
			t.Fatal(err)
		}
		if name != "stopped" {
			all[name] = workload.RunningInstance{ID: workload.ID{Name: name, UID: o.Meta.Uid, Generation: 1}, Driver: countingDriver{}}
		}
	}
	all["orphan"] = workload.RunningInstance{ID: workload.ID{Name: "orphan", UID: "x"}, Driver: countingDriver{}}
	return b
}

func TestSample(t *testing.T) {
	b := sampled(t, "web", "host", "stopped", "broken", "hangs")
	s, err := capsulev1.NewStatsServiceClient(b.dial(t, capsulev1.Role_ROLE_READER)).Sample(limit(t), &capsulev1.SampleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	m := s.GetMachine()
	if m.GetCpus() == 0 || m.GetUse().GetMemory() == 0 || m.GetUse().GetCpu().AsDuration() <= 0 || s.GetUptime().AsDuration() <= 0 {
		t.Errorf("machine %v", s)
	}
	byName := map[string]*capsulev1.WorkloadUse{}
	var names []string
	for _, w := range s.GetWorkloads() {
		names = append(names, w.GetName())
		byName[w.GetName()] = w
	}
	if strings.Join(names, " ") != "broken hangs host stopped web" {
		t.Errorf("got %v", names)
	}
	w := byName["web"].GetUse()
	if w.GetMemory() != 1<<20 || w.GetMemoryLimit() != 64<<20 || w.GetIoWritten() != 20 || w.GetNetReceived() != 100 || w.GetNetSent() != 200 || byName["web"].GetCpusLimit() != 500 {
		t.Errorf("web %v", w)
	}
	if u := byName["host"].GetUse(); u == nil || u.NetReceived != nil {
		t.Errorf("in the capsule's own network: %v", u)
	}
	if byName["stopped"].GetUse() != nil || byName["stopped"].GetRunningGeneration() != 0 {
		t.Errorf("stopped %v", byName["stopped"])
	}
	for _, name := range []string{"broken", "hangs"} {
		if byName[name].GetUse() != nil || byName[name].GetMessage() == "" || byName[name].GetRunningGeneration() != 1 {
			t.Errorf("%v", byName[name])
		}
	}
}
