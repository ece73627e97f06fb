package workload

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/store"
)

// served keeps the object of the generation that was started last: its signal,
// grace and ports hold until a newer one runs, through restarts too.
type served struct {
	bucket *store.Bucket
}

// get is nil when nothing of this object was started yet.
func (s *served) get(meta *v1.Meta) (*v1.Object, error) {
	data, found, err := s.bucket.Get(meta.Name)
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

func (s *served) put(obj *v1.Object) error {
	obj = proto.CloneOf(obj)
	obj.GetWorkload().Status = nil
	data, err := proto.Marshal(obj)
	if err != nil {
		return fmt.Errorf("encode workload %q: %w", obj.Meta.Name, err)
	}
	return s.bucket.Put(obj.Meta.Name, data)
}

func (s *served) drop(name string) error { return s.bucket.Delete(name) }
