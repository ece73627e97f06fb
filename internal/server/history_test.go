package server

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	capsulev1 "capsule/api/capsule/v1"
)

// of gives a web of an image.
func of(image string, ports ...*capsulev1.Port) *capsulev1.Object {
	o := web("web", ports...)
	o.GetWorkload().Spec.Image = image
	return o
}

// becomes writes the status that the loop would.
func (b *box) becomes(t *testing.T, status *capsulev1.WorkloadStatus) {
	t.Helper()
	o, err := b.store.Get("", "web")
	if err != nil {
		t.Fatal(err)
	}
	status.Generation = o.GetMeta().GetGeneration()
	if err := b.store.PutStatus(o.GetMeta().GetUid(), status); err != nil {
		t.Fatal(err)
	}
}

// judged writes what became of the newest revision, as the loop would.
func (b *box) judged(t *testing.T, outcome capsulev1.RevisionOutcome) {
	t.Helper()
	bucket := b.store.Bucket("history")
	data, _, err := bucket.Get("web")
	if err != nil {
		t.Fatal(err)
	}
	h := &capsulev1.HistoryResponse{}
	if err := proto.Unmarshal(data, h); err != nil {
		t.Fatal(err)
	}
	h.Revisions[len(h.Revisions)-1].Outcome = outcome
	if data, err = proto.Marshal(h); err != nil {
		t.Fatal(err)
	}
	if err := bucket.Put("web", data); err != nil {
		t.Fatal(err)
	}
}

// serves writes that a generation of "web" serves.
func (b *box) serves(t *testing.T, generation uint64, as *capsulev1.Object) {
	t.Helper()
	o, err := b.store.Get("", "web")
	if err != nil {
		t.Fatal(err)
	}
	as.Meta = proto.CloneOf(o.GetMeta())
	as.Meta.Generation = generation
	data, err := proto.Marshal(as)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.store.Bucket("served").Put("web", data); err != nil {
		t.Fatal(err)
	}
}

func TestRollback(t *testing.T) {
	b := newBox(t, nil)
	client := capsulev1.NewWorkloadServiceClient(b.dial(t, capsulev1.Role_ROLE_OPERATOR))
	const healthy, failed = capsulev1.RevisionOutcome_REVISION_OUTCOME_HEALTHY, capsulev1.RevisionOutcome_REVISION_OUTCOME_FAILED
	for image, outcome := range slices.All([]capsulev1.RevisionOutcome{healthy, capsulev1.RevisionOutcome_REVISION_OUTCOME_RAN, failed, healthy}) {
		if _, err := b.apply(t, of([]string{"web:1", "web:2", "web:3", "web:2"}[image])); err != nil {
			t.Fatal(err)
		}
		b.judged(t, outcome)
	}
	rollback := func(to uint64, dry bool) string {
		got, err := client.Rollback(limit(t), &capsulev1.RollbackRequest{Name: "web", To: to, DryRun: dry})
		if err != nil {
			return status.Code(err).String() + ": " + status.Convert(err).Message()
		}
		return strings.Join(append([]string{got.GetResult().GetOutcome().String(), got.GetResult().GetObject().GetWorkload().GetSpec().GetImage()}, got.GetResult().GetWarnings()...), " ")
	}
	// Generation 2 is what is declared, 3 was not well.
	for _, c := range []struct {
		to   uint64
		dry  bool
		want string
	}{
		{0, true, "OUTCOME_CHANGED web:1"},
		{3, true, "OUTCOME_CHANGED web:3"},
		{2, true, "OUTCOME_UNCHANGED web:2"},
		{9, false, `FailedPrecondition: workload "web" has no revision 9; kept are: 1, 2, 3, 4`},
		{0, false, "OUTCOME_CHANGED web:1"},
		{0, false, "OUTCOME_CHANGED web:2"}, // and to and fro
	} {
		if diff := cmp.Diff(c.want, strings.TrimSuffix(rollback(c.to, c.dry), ": failed precondition")); diff != "" {
			t.Errorf("to %d: %s", c.to, diff)
		}
		if c.to == 0 && !c.dry {
			b.judged(t, healthy)
		}
	}
	h, err := client.History(limit(t), &capsulev1.HistoryRequest{Name: "web"})
	if err != nil || len(h.GetRevisions()) != 6 || h.GetRevisions()[5].GetAppliedBy() == "" || h.GetRevisions()[5].GetGeneration() != 6 {
		t.Errorf("%v, %v", h, err)
	}
	if _, err := client.History(limit(t), &capsulev1.HistoryRequest{Name: "none"}); status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	if err := b.store.Delete("", "web"); err != nil {
		t.Fatal(err)
	}
	if got := rollback(1, false); !strings.HasPrefix(got, `FailedPrecondition: workload "web" is being deleted`) {
		t.Error(got)
	}
}

// Whoever applies again what was rolled back has it tried again, and is told so.
func TestApplyTriesAgain(t *testing.T) {
	b := newBox(t, nil)
	if _, err := b.apply(t, of("web:1")); err != nil {
		t.Fatal(err)
	}
	b.becomes(t, &capsulev1.WorkloadStatus{RolledBack: "unhealthy: no"})
	for _, want := range []string{"OUTCOME_CHANGED [it was rolled back before (unhealthy: no), and is tried again]", "OUTCOME_UNCHANGED []"} {
		got, err := b.apply(t, of("web:1"))
		if err != nil {
			t.Fatal(err)
		}
		r := got.GetResults()[0]
		if diff := cmp.Diff(want, r.GetOutcome().String()+" ["+strings.Join(r.GetWarnings(), ", ")+"]"); diff != "" {
			t.Error(diff)
		}
	}
}

// Ports of what serves, or is gone back to, are taken as those that are declared are.
func TestApplyRefusesPortsOfWhatServes(t *testing.T) {
	b := newBox(t, nil)
	port := func(n uint32) *capsulev1.Port { return &capsulev1.Port{HostPort: n, Port: 80, Protocol: "tcp"} }
	if _, err := b.apply(t, of("web:2", port(8081))); err != nil {
		t.Fatal(err)
	}
	b.serves(t, 0, of("web:1", port(8080)))
	_, err := b.apply(t, web("other", port(8080)))
	if want := `generation 0 of workload "web" serves, or is gone back to: publish port of workload "other": port 8080/tcp is already published by workload "web"`; status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
	if _, err := b.apply(t, web("other", port(8082))); err != nil {
		t.Error(err)
	}
	if _, err := b.apply(t, of("web:2", port(8080))); err != nil {
		t.Errorf("its own: %v", err)
	}
	b.serves(t, 2, of("web:2", port(8080)))
	if _, err := b.apply(t, of("web:2", port(8081)), web("other", port(8080))); err != nil {
		t.Errorf("changed in one apply: %v", err)
	}
	if err := b.store.Delete("Container", "web"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.apply(t, web("third", port(8080)), web("other", port(8083))); err != nil {
		t.Errorf("what is deleted: %v", err)
	}
}

// The image of what serves, or is gone back to, is not pruned.
func TestPruneKeepsWhatServes(t *testing.T) {
	cache := &pruned{}
	b := newBox(t, func(o *Options) { o.Images = cache })
	if _, err := b.apply(t, of("web:2")); err != nil {
		t.Fatal(err)
	}
	b.serves(t, 0, of("web:1"))
	if _, err := capsulev1.NewImageServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN)).Prune(limit(t), &capsulev1.PruneRequest{}); err != nil {
		t.Fatal(err)
	}
	if !cache.used["docker.io/library/web:1"] || !cache.used["docker.io/library/web:2"] {
		t.Error(cache.used)
	}
}

// pruned stands for the image store, which needs containerd.
type pruned struct{ used map[string]bool }

func (*pruned) List(context.Context) ([]*capsulev1.Image, error) { return nil, nil }

func (*pruned) Push(context.Context, io.Reader, string, func(*capsulev1.Progress)) (*capsulev1.PushResult, error) {
	return &capsulev1.PushResult{}, nil
}

func (p *pruned) Prune(_ context.Context, used map[string]bool, _ bool) (*capsulev1.PruneResponse, error) {
	p.used = used
	return &capsulev1.PruneResponse{}, nil
}
