package workload

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/store"
)

func sentences(list []store.Happening) string {
	var out []string
	for _, h := range list {
		out = append(out, h.Type+": "+h.Text)
	}
	return strings.Join(out, "; ")
}

func TestHappened(t *testing.T) {
	at := func(s int64) *timestamppb.Timestamp { return &timestamppb.Timestamp{Seconds: s} }
	code := int32(137)
	running := &v1.WorkloadStatus{Generation: 1, RunningGeneration: 1, Phase: v1.Phase_PHASE_RUNNING, StartedAt: at(10)}
	pulling := &v1.WorkloadStatus{Generation: 1, Phase: v1.Phase_PHASE_PULLING}
	failed := &v1.WorkloadStatus{Generation: 1, Phase: v1.Phase_PHASE_FAILED, Message: "no registry has it"}
	older := &v1.WorkloadStatus{Generation: 2, RunningGeneration: 1, Phase: v1.Phase_PHASE_STARTING, StartedAt: at(10)}
	oom := &v1.WorkloadStatus{Generation: 1, Phase: v1.Phase_PHASE_BACK_OFF, Reason: reasonOOM, Message: "killed at its memory limit (exit code 137)", StartedAt: at(10), FinishedAt: at(20), ExitCode: &code}
	again := &v1.WorkloadStatus{Generation: 1, RunningGeneration: 1, Phase: v1.Phase_PHASE_RUNNING, StartedAt: at(21), FinishedAt: at(20), Restarts: 1}
	stopped := &v1.WorkloadStatus{Generation: 1, Phase: v1.Phase_PHASE_STOPPED, StartedAt: at(10), FinishedAt: at(30), ExitCode: &code}
	for name, tc := range map[string]struct {
		old, status *v1.WorkloadStatus
		want        string
	}{
		"first start":      {pulling, running, "running: runs, generation 1"},
		"the same":         {running, running, ""},
		"of nothing":       {nil, pulling, ""},
		"out of memory":    {running, oom, "oom: killed at its memory limit (exit code 137)"},
		"started again":    {oom, again, "running: runs, generation 1"},
		"between passes":   {running, again, "ended: ended with exit code 0; running: runs, generation 1"},
		"stopped":          {running, stopped, "ended: ended with exit code 137, as an operator stopped it"},
		"can't be pulled":  {pulling, failed, "failed: no registry has it"},
		"still can't":      {failed, failed, ""},
		"the older serves": {running, older, ""},
	} {
		if got := sentences(happened(tc.old, tc.status)); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// A workload that ends again and again fills no ring, and one that ends now and
// then is told of each time.
func TestNewsOfACrashLoop(t *testing.T) {
	tell, now := told{}, time.Unix(1e9, 0)
	crash := func(every time.Duration, times int) (n int) {
		for range times {
			now = now.Add(every)
			before := &v1.WorkloadStatus{Generation: 1, RunningGeneration: 1, Phase: v1.Phase_PHASE_RUNNING, StartedAt: timestamppb.New(now)}
			after := &v1.WorkloadStatus{Generation: 1, Phase: v1.Phase_PHASE_BACK_OFF, Message: "exited with code 1", StartedAt: before.StartedAt, FinishedAt: timestamppb.New(now)}
			n += len(tell.news(nil, before, now)) + len(tell.news(before, after, now))
		}
		return n
	}
	if n := crash(5*time.Minute, 24*12); n > 50 || n < 40 {
		t.Errorf("%d events of a day", n)
	}
	if n := crash(2*time.Hour, 10); n != 20 {
		t.Errorf("%d events of ten ends", n)
	}
	now = now.Add(-1000 * time.Hour) // the clock was set
	if n := crash(time.Second, 1); n != 2 {
		t.Errorf("%d events", n)
	}
}

// One that says something else each time fills no ring either, until an operator
// changes it.
func TestNewsOfAnInventiveWorkload(t *testing.T) {
	tell, now := told{}, time.Unix(1e9, 0)
	fails := func(generation uint64, times int) (n int) {
		before := &v1.WorkloadStatus{Generation: generation, Phase: v1.Phase_PHASE_PULLING}
		for range times {
			now = now.Add(time.Second)
			after := &v1.WorkloadStatus{Generation: generation, Phase: v1.Phase_PHASE_FAILED, Message: now.String()}
			n += len(tell.news(before, after, now))
			before = after
		}
		return n
	}
	if n := fails(1, 24*3600); n < toldBurst+23 || n > toldBurst+24 {
		t.Errorf("%d events of a day", n)
	}
	before := &v1.WorkloadStatus{Generation: 1}
	tell.news(before, &v1.WorkloadStatus{Generation: 2}, now)
	if n := fails(2, toldBurst+5); n != toldBurst {
		t.Errorf("%d events of the next generation", n)
	}
}

func TestLoopTellsWhatHappened(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1")
		m.driver.crash("web", 3)
		m.rest(time.Minute)
		m.kill()
		m.boot()
		m.rest(time.Minute)
		page, err := m.store.Events(0, 100, func(e *v1.Event) bool { return e.GetType() != "created" })
		if err != nil {
			m.Fatal(err)
		}
		var got []string
		for _, e := range page.Events {
			got = append(got, fmt.Sprint(e.GetType(), " ", e.GetMessage()))
		}
		if text := strings.Join(got, "\n"); text != "running container web: runs, generation 1\nended container web: exited with code 3" {
			m.Errorf("got\n%s", text)
		}
	})
}
