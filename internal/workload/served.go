package workload

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/store"
)

// servedTable of the store holds, by name, the object of the generation that was
// started last, and by healthyKey the one that was healthy last, with the digest of
// its image and its phase in its status. Both have their signal, grace and check resolved.
const servedTable = "served"

func healthyKey(name string) string { return name + "/healthy" } // no name has a slash

// served keeps the object of the generation that was started last: its signal,
// grace and ports hold until a newer one runs, through restarts too. Beside it is
// the one that is gone back to when that is not well.
type served struct {
	bucket *store.Bucket
}

// get is nil when nothing of this object was started yet.
func (s *served) get(meta *v1.Meta) (*v1.Object, error) { return servedIn(s.bucket, meta, meta.Name) }

// healthy is nil when there is none to go back to.
func (s *served) healthy(meta *v1.Meta) (*v1.Object, error) {
	return servedIn(s.bucket, meta, healthyKey(meta.Name))
}

// servedIn reads an object of the same uid.
func servedIn(table records, meta *v1.Meta, key string) (*v1.Object, error) {
	data, found, err := table.Get(key)
	if err != nil || !found {
		return nil, err
	}
	obj := &v1.Object{}
	if err := proto.Unmarshal(data, obj); err != nil {
		return nil, fmt.Errorf("read the served generation of workload %q: %w", meta.Name, err)
	}
	if obj.GetMeta().GetUid() != meta.Uid {
		return nil, nil
	}
	return obj, nil
}

func putServed(table records, key string, obj *v1.Object, status *v1.WorkloadStatus) error {
	obj = proto.CloneOf(obj)
	obj.GetWorkload().Status = status
	data, err := proto.Marshal(obj)
	if err != nil {
		return fmt.Errorf("encode workload %q: %w", obj.Meta.Name, err)
	}
	return table.Put(key, data)
}

// put keeps what was started. One that is not to be gone back from leaves nothing
// to go back to: what ran before may not understand any more what it wrote.
func (s *served) put(obj *v1.Object, forward bool) error {
	return s.bucket.Update(func(table store.Table) error {
		if forward {
			if err := table.Delete(healthyKey(obj.Meta.Name)); err != nil {
				return err
			}
		}
		return putServed(table, obj.Meta.Name, obj, nil)
	})
}

// trust makes an object, with the digest of its image and whether it runs or has done
// its work, the one to go back to.
func (s *served) trust(obj *v1.Object, digest string, phase v1.Phase) error {
	return putServed(s.bucket, healthyKey(obj.Meta.Name), obj, &v1.WorkloadStatus{ImageDigest: digest, Phase: phase})
}

// back makes the one to go back to the one that serves.
func (s *served) back(meta *v1.Meta) error {
	return s.bucket.Update(func(table store.Table) error {
		obj, err := servedIn(table, meta, healthyKey(meta.Name))
		if err != nil || obj == nil {
			return err
		}
		return putServed(table, meta.Name, obj, nil)
	})
}

func (s *served) drop(name string) error {
	return s.bucket.Update(func(table store.Table) error {
		if err := table.Delete(healthyKey(name)); err != nil {
			return err
		}
		return table.Delete(name)
	})
}

// Standing gives what of a workload may run whatever is declared: the generation
// that was started last, and the one that is gone back to.
func Standing(tx store.View, meta *v1.Meta) (objs []*v1.Object, err error) {
	table, err := tx.Table(servedTable)
	if err != nil {
		return nil, err
	}
	return standing(table, meta)
}

// StandingNow is Standing outside of a transaction.
func StandingNow(s *store.Store, meta *v1.Meta) ([]*v1.Object, error) {
	return standing(s.Bucket(servedTable), meta)
}

func standing(table records, meta *v1.Meta) (objs []*v1.Object, err error) {
	for _, key := range []string{meta.Name, healthyKey(meta.Name)} {
		obj, err := servedIn(table, meta, key)
		if err != nil {
			return nil, err
		}
		if obj != nil {
			objs = append(objs, obj)
		}
	}
	return objs, nil
}
