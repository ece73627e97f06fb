package store

import (
	"fmt"
	"testing"

	v1 "capsule/api/capsule/v1"
)

// many is as many workloads as the capsule is measured with (test/bench).
const many = 200

// crowded is a store of many workloads that run.
func crowded(t testing.TB) (s *Store, uids []string) {
	s, err := Open(t.TempDir() + "/state.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	var objs []*v1.Object
	for i := range many {
		objs = append(objs, container(fmt.Sprintf("bench-%03d", i), "web:1"))
	}
	results, err := s.Apply(t.Context(), objs, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		uid := r.GetObject().GetMeta().GetUid()
		uids = append(uids, uid)
		if err := s.PutStatus(uid, &v1.WorkloadStatus{Generation: 1, Phase: v1.Phase_PHASE_RUNNING, Addresses: []string{"172.31.0.2", "fd00::2"}}); err != nil {
			t.Fatal(err)
		}
	}
	return s, uids
}

func BenchmarkGet(b *testing.B) {
	s, _ := crowded(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Get("", "bench-100"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkList(b *testing.B) {
	s, _ := crowded(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.List(""); err != nil {
			b.Fatal(err)
		}
	}
}

// With the disk's time: each status is on it before the next.
func BenchmarkPutStatus(b *testing.B) {
	s, uids := crowded(b)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if err := s.PutStatus(uids[n%many], &v1.WorkloadStatus{Generation: 1, Restarts: uint32(n + 1)}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	s, _ := crowded(b)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if _, err := s.Apply(b.Context(), []*v1.Object{container("bench-100", fmt.Sprint("web:", n+2))}, false, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// What is done often must not cost more with every object that there is: a status is
// written of one, and the checks of an apply look at one list, whoever asks for it.
func TestCostOfOneAmongMany(t *testing.T) {
	s, uids := crowded(t)
	restarts := uint32(0)
	status := testing.AllocsPerRun(10, func() {
		restarts++
		if err := s.PutStatus(uids[7], &v1.WorkloadStatus{Generation: 1, Restarts: restarts}); err != nil {
			t.Fatal(err)
		}
	})
	if status > 2*many {
		t.Errorf("a status takes %v allocations among %d objects", status, many)
	}
	looks := func(n int) float64 {
		return testing.AllocsPerRun(5, func() {
			_, err := s.Apply(t.Context(), []*v1.Object{container("bench-007", "web:1")}, true, func(v View, _ []*v1.Object) error {
				for range n {
					if all, err := v.List(""); err != nil || len(all) != many {
						t.Error(len(all), err)
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	if one, ten := looks(1), looks(10); ten > one+2*many {
		t.Errorf("ten lists in an apply take %v allocations, one takes %v", ten, one)
	}
}

// A list shows what a check before it has changed.
func TestListAfterRenew(t *testing.T) {
	s, _ := openTemp(t)
	apply(t, s, container("a", "web:1"))
	_, err := s.Apply(t.Context(), []*v1.Object{container("b", "web:1")}, false, func(v View, _ []*v1.Object) error {
		before, err := v.List("")
		if err != nil || len(before) != 2 {
			t.Error(before, err)
		}
		if _, err := v.Renew("a", "changed", "for a test"); err != nil {
			t.Error(err)
		}
		after, err := v.List("Container")
		if err != nil || len(after) != 2 || after[0].Meta.Generation != 2 {
			t.Error(after, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
