package workload

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/store"
)

// Bounds of what is kept of a workload's past; the newest revision is kept always.
const (
	RevisionsMax      = 10
	revisionsMaxBytes = 512 << 10
)

// historyTable of the store holds the revisions of each workload, by name.
const historyTable = "history"

// records is a table of the store, in a transaction or not.
type records interface {
	Get(key string) (value []byte, found bool, err error)
	Put(key string, value []byte) error
}

// Record keeps what an apply declares, in its own transaction: objs as they will
// be, and who applies them.
func Record(tx store.View, objs []*v1.Object, by string, now time.Time) error {
	table, err := tx.Table(historyTable)
	if err != nil {
		return err
	}
	for _, obj := range objs {
		old := tx.Old(obj)
		if obj.GetWorkload() == nil || old != nil && old.Meta.Generation == obj.Meta.Generation {
			continue
		}
		h, err := revisionsIn(table, obj.Meta)
		if err != nil {
			return err
		}
		h.Revisions = append(h.Revisions, &v1.Revision{
			Generation: obj.Meta.Generation, AppliedAt: timestamppb.New(now), AppliedBy: by,
			Kind: obj.Meta.Kind, Spec: obj.GetWorkload().GetSpec(),
		})
		if err := keepRevisions(table, obj.Meta.Name, h); err != nil {
			return err
		}
	}
	return nil
}

// Revisions of a workload, oldest first.
func Revisions(s *store.Store, meta *v1.Meta) (*v1.HistoryResponse, error) {
	return revisionsIn(s.Bucket(historyTable), meta)
}

// revisionsIn gives none when nothing is kept of this very object.
func revisionsIn(table records, meta *v1.Meta) (*v1.HistoryResponse, error) {
	data, found, err := table.Get(meta.Name)
	if err != nil {
		return nil, err
	}
	h := &v1.HistoryResponse{}
	if err := proto.Unmarshal(data, h); err != nil {
		return nil, fmt.Errorf("read the history of workload %q: %w", meta.Name, err)
	}
	if !found || h.Uid != meta.Uid {
		h = &v1.HistoryResponse{Uid: meta.Uid}
	}
	return h, nil
}

func keepRevisions(table records, name string, h *v1.HistoryResponse) error {
	for len(h.Revisions) > 1 && (len(h.Revisions) > RevisionsMax || proto.Size(h) > revisionsMaxBytes) {
		h.Revisions = h.Revisions[1:]
	}
	data, err := proto.Marshal(h)
	if err != nil {
		return fmt.Errorf("encode the history of workload %q: %w", name, err)
	}
	return table.Put(name, data)
}

// result is what is known of a generation's fate.
type result struct {
	generation uint64
	outcome    v1.RevisionOutcome
	digest     string
}

// worth of outcomes: one does not take the place of a better one. What was well
// once is no bad spec.
var worth = map[v1.RevisionOutcome]int{
	v1.RevisionOutcome_REVISION_OUTCOME_FAILED:      1,
	v1.RevisionOutcome_REVISION_OUTCOME_ROLLED_BACK: 2,
	v1.RevisionOutcome_REVISION_OUTCOME_RAN:         3,
	v1.RevisionOutcome_REVISION_OUTCOME_HEALTHY:     4,
}

// resultOf tells the fate of the wanted generation, and why.
func resultOf(status *v1.WorkloadStatus) (r result, message string) {
	r.generation = status.GetGeneration()
	runs := status.GetRunningGeneration() == r.generation
	if runs {
		r.digest = status.GetImageDigest()
	}
	switch phase := status.GetPhase(); {
	case status.GetRolledBack() != "":
		r.outcome, message = v1.RevisionOutcome_REVISION_OUTCOME_ROLLED_BACK, status.GetRolledBack()
	case status.GetReason() == reasonMachine: // that says nothing of it
	case runs && status.GetHealth() == v1.HealthState_HEALTH_STATE_HEALTHY, phase == v1.Phase_PHASE_EXITED && status.GetExitCode() == 0:
		r.outcome = v1.RevisionOutcome_REVISION_OUTCOME_HEALTHY
	case runs && status.GetHealth() == v1.HealthState_HEALTH_STATE_UNHEALTHY,
		phase == v1.Phase_PHASE_FAILED, phase == v1.Phase_PHASE_BACK_OFF, phase == v1.Phase_PHASE_EXITED:
		r.outcome, message = v1.RevisionOutcome_REVISION_OUTCOME_FAILED, status.GetMessage()
	case runs && phase == v1.Phase_PHASE_RUNNING && status.GetHealth() == v1.HealthState_HEALTH_STATE_UNSPECIFIED && status.GetHealthyGeneration() == r.generation:
		r.outcome = v1.RevisionOutcome_REVISION_OUTCOME_RAN
	}
	return r, message
}

// settle keeps what became of the revision that an object is of.
func (l *Loop) settle(obj *v1.Object, m *memory, status *v1.WorkloadStatus) error {
	r, message := resultOf(status)
	if r == m.settled || r.outcome == v1.RevisionOutcome_REVISION_OUTCOME_UNSPECIFIED && r.digest == "" {
		return nil
	}
	err := l.opts.Store.Bucket(historyTable).Update(func(table store.Table) error {
		h, err := revisionsIn(table, obj.Meta)
		if err != nil {
			return err
		}
		before := proto.CloneOf(h)
		if rev := revisionOf(h, obj); rev != nil {
			judge(rev, r, message)
		}
		if proto.Equal(before, h) {
			return store.ErrUnchanged // nothing is written
		}
		return keepRevisions(table, obj.Meta.Name, h)
	})
	if err == nil || errors.Is(err, store.ErrUnchanged) {
		m.settled = r
		return nil
	}
	return fmt.Errorf("write the history of workload %q: %w", obj.Meta.Name, err)
}

// judge writes what is known now into a revision.
func judge(rev *v1.Revision, r result, message string) {
	if r.digest != "" {
		rev.ImageDigest = r.digest
	}
	if worth[r.outcome] > worth[rev.Outcome] {
		rev.Outcome, rev.Message = r.outcome, message
	}
}

// revisionOf an object: starts and stops make generations of the same spec. It is
// nil when an older version of the daemon applied it, which keeps no history.
func revisionOf(h *v1.HistoryResponse, obj *v1.Object) *v1.Revision {
	for _, rev := range slices.Backward(h.Revisions) {
		if rev.Generation > obj.Meta.Generation {
			continue
		}
		if rev.Kind != obj.Meta.Kind || !proto.Equal(rev.Spec, obj.GetWorkload().GetSpec()) {
			return nil
		}
		return rev
	}
	return nil
}
