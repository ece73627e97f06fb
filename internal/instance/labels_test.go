package instance

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"capsule/internal/image"
	"capsule/internal/process"
	"capsule/internal/workload"
)

func labelsInstance() workload.Instance {
	return workload.Instance{
		ID:    workload.ID{Name: "my.web", UID: "0123abcd-4567-89ab-cdef-000000000000", Generation: 12},
		Image: image.Image{Digest: "sha256:aa"},
	}
}

// What labels say of an instance whose task is gone.
func TestObserved(t *testing.T) {
	started := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	end := Ending{Code: 137, At: started.Add(time.Hour), OOM: true}
	in := labelsInstance()
	base := workload.Observed{ID: in.ID, State: workload.Prepared, ImageDigest: "sha256:aa"}
	for name, tc := range map[string]struct {
		add  map[string]string
		want func(o *workload.Observed)
	}{
		"prepared": {nil, func(*workload.Observed) {}},
		"lost by a power cut": {map[string]string{LabelStarted: started.Format(time.RFC3339Nano)}, func(o *workload.Observed) {
			o.State, o.StartedAt, o.ExitCode = workload.Ended, started, process.Killed
		}},
		"ended": {map[string]string{LabelStarted: started.Format(time.RFC3339Nano), LabelEnd: end.String()}, func(o *workload.Observed) {
			o.State, o.StartedAt, o.FinishedAt, o.ExitCode, o.OOM = workload.Ended, started, end.At, 137, true
		}},
		"ended with a note": {map[string]string{LabelEnd: end.String(), LabelNote: "why"}, func(o *workload.Observed) {
			o.State, o.FinishedAt, o.ExitCode, o.OOM, o.Note = workload.Ended, end.At, 137, true, "why"
		}},
		"damaged": {map[string]string{LabelStarted: "x", LabelEnd: "y z"}, func(*workload.Observed) {}},
	} {
		t.Run(name, func(t *testing.T) {
			l := Open(nil, MicroVM, "").labels(in)
			for k, v := range tc.add {
				l[k] = v
			}
			want := base
			tc.want(&want)
			got, ok := Observed(l)
			if diff := cmp.Diff(want, got); !ok || diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, ok := Observed(map[string]string{LabelName: "x"}); ok {
		t.Error("a container without a generation is taken for ours")
	}
}

func TestRecordID(t *testing.T) {
	in := labelsInstance()
	id := RecordID(in.ID)
	if id != "my.web.0123abcd.12" || WorkloadName(id) != "my.web" {
		t.Errorf("%q, of workload %q", id, WorkloadName(id))
	}
	for _, foreign := range []string{"", "web", "web.1"} {
		if name := WorkloadName(foreign); name != "" {
			t.Errorf("%q is of workload %q", foreign, name)
		}
	}
}

func TestSentence(t *testing.T) {
	for want, e := range map[string]Ending{
		"ended with code 3":    {Code: 3},
		"ended by signal 9":    {Code: process.Killed},
		"ended: out of memory": {Code: process.Killed, OOM: true, Note: "x"},
		"ended: it panicked":   {Code: process.Killed, Note: "it panicked"},
	} {
		if got := e.sentence(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A note may quote a guest: it stays bounded, valid text.
func TestClip(t *testing.T) {
	for note, want := range map[string]string{
		"short":                        "short",
		"a\xffb":                       "a?b",
		"x" + strings.Repeat("é", 600): "x" + strings.Repeat("é", 511) + "…",
	} {
		if got := clip(note); got != want {
			t.Errorf("%q became %q", note, got)
		}
	}
}

func TestOwners(t *testing.T) {
	for _, list := range [][]process.Account{
		nil, {{UID: 0, GID: 0}}, {{UID: 1000, GID: 2000}, {UID: 4294967294, GID: 0}},
	} {
		if diff := cmp.Diff(list, Owners(OwnerLabels(list))); diff != "" {
			t.Error(diff)
		}
	}
	if got := Owners(map[string]string{LabelOwners: "1:2 rot 3:4"}); len(got) != 1 {
		t.Errorf("%v", got)
	}
}
