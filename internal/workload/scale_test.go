package workload

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	v1 "capsule/api/capsule/v1"
)

// many is as many workloads as the capsule is measured with (test/bench).
const many = 200

// slowLists is a runtime whose lists take as long as containerd's of a hundred tasks.
type slowLists struct {
	*runtime
	lists atomic.Int32
}

const listTakes = 50 * time.Millisecond

func (s *slowLists) List(ctx context.Context) ([]Observed, error) {
	s.lists.Add(1)
	time.Sleep(listTakes)
	return s.runtime.List(ctx)
}

// crowd declares many workloads; every second one is stopped.
func (m *machine) crowd() {
	m.Helper()
	var objs []*v1.Object
	for i := range many {
		w := &v1.Workload{Spec: &v1.WorkloadSpec{Image: "web:1"}}
		objs = append(objs, &v1.Object{Meta: &v1.Meta{Kind: "Container", Name: fmt.Sprintf("bench-%03d", i)}, Kind: &v1.Object_Workload{Workload: w}})
	}
	if _, err := m.store.Apply(m.Context(), objs, false, nil); err != nil {
		m.Fatal(err)
	}
	m.rest(10 * time.Second)
	for i := 0; i < many; i += 2 {
		if _, err := m.store.Mutate(objs[i].Meta.Name, "stopped", func(o *v1.Object) error {
			o.GetWorkload().Intent = &v1.Intent{Stopped: true}
			return nil
		}); err != nil {
			m.Fatal(err)
		}
	}
	m.rest(time.Minute)
}

// A pass over workloads that need nothing asks each runtime for a few lists, whatever
// the number of workloads, and does nothing else: nothing is started, read or written
// for each of them.
func TestFullPassOfMany(t *testing.T) {
	inMachine(t, func(m *machine) {
		lists := &slowLists{runtime: m.driver}
		m.loop.listers["Container"].driver = lists
		m.crowd()
		m.driver.took()
		before, err := m.store.NewestEvent()
		if err != nil {
			m.Fatal(err)
		}
		published := m.net.times
		lists.lists.Store(0)
		const passes = 5
		m.rest(passes * 30 * time.Second)
		if n, most := lists.lists.Load(), int32(passes); n > most {
			t.Errorf("%d lists in %d passes, at most %d", n, passes, most)
		}
		if calls := m.driver.took(); len(calls) > 0 {
			t.Errorf("while nothing happens: %q", calls)
		}
		after, err := m.store.NewestEvent()
		if err != nil || after != before || m.net.times != published {
			t.Errorf("events %d, then %d, published %d times, then %d, %v", before, after, published, m.net.times, err)
		}
		if took := m.loop.LastPass(); took <= 0 || took > time.Second {
			t.Errorf("a pass took %v", took)
		}
	})
}
