package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
)

func TestMeasure(t *testing.T) {
	bytesOf := func(n uint64) *uint64 { return &n }
	use := func(cpu time.Duration, n uint64) *capsulev1.Use {
		return &capsulev1.Use{Cpu: durationpb.New(cpu), Memory: n, IoRead: n, IoWritten: 2 * n, NetReceived: bytesOf(n), NetSent: bytesOf(3 * n)}
	}
	before := &capsulev1.SampleResponse{Uptime: durationpb.New(10 * time.Second), Machine: &capsulev1.MachineUse{Use: use(time.Second, 1000)}, Workloads: []*capsulev1.WorkloadUse{
		{Name: "web", Uid: "1", RunningGeneration: 1, Use: use(time.Second, 100)},
		{Name: "new", Uid: "2", RunningGeneration: 1, Use: use(time.Hour, 100)},
		{Name: "again", Uid: "3", RunningGeneration: 1, Use: use(time.Hour, 100)},
	}}
	now := &capsulev1.SampleResponse{Uptime: durationpb.New(12 * time.Second), Machine: &capsulev1.MachineUse{Use: use(4*time.Second, 3000)}, Workloads: []*capsulev1.WorkloadUse{
		{Name: "web", Uid: "1", RunningGeneration: 1, Use: use(2*time.Second, 300)},
		{Name: "new", Uid: "2", RunningGeneration: 2, Use: use(3*time.Second, 300)},
		{Name: "again", Uid: "3", RunningGeneration: 1, Use: use(time.Second, 50)},
		{Name: "gone", Uid: "4"},
		{Name: "mute", Uid: "5", RunningGeneration: 1, Message: "does not\nanswer"},
	}}
	all := measure(before, now)
	if r := all[0]; r.CPUPercent != 150 || r.Read != 1000 || r.Written != 2000 || *r.Received != 1000 || *r.Sent != 3000 || r.Memory != 3000 {
		t.Errorf("machine %+v", r)
	}
	if r := all[1]; r.CPUPercent != 50 || r.Read != 100 || *r.Sent != 300 {
		t.Errorf("workload %+v", r)
	}
	if r := all[2]; r.CPUPercent != 0 || r.Read != 0 || !r.Running {
		t.Errorf("of another generation: %+v", r)
	}
	if r := all[3]; r.CPUPercent != 50 || r.Read != 25 {
		t.Errorf("that began anew: %+v", r)
	}
	if again := measure(now, now); again[0].CPUPercent != 0 {
		t.Errorf("in no time: %+v", again[0])
	}
	for order, want := range map[string]string{
		sortCPU: "machine again web mute new gone", sortMemory: "machine new web again mute gone", sortName: "machine again mute new web gone",
	} {
		if got := strings.Join(topView(measure(before, now), order).names, " "); got != want {
			t.Errorf("by %s: %s", order, got)
		}
	}
	var table, out bytes.Buffer
	if err := (&ui{out: &table}).show(formatTable, topView(all, sortName)); err != nil || !strings.Contains(table.String(), "does not?answer") {
		t.Errorf("%q, %v", table.String(), err)
	}
	s := screen{ui: &ui{out: &out}}
	if err := s.show(topView(all, sortName), lostText); err != nil || !strings.HasPrefix(out.String(), strings.Repeat("\n", screenRows)+"\x1b[H") ||
		!strings.HasSuffix(out.String(), "\n"+lostText+"\x1b[K\x1b[J") {
		t.Errorf("%q, %v", out.String(), err)
	}
}
