package store

import (
	"fmt"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
)

func (v view) Renew(name, event, text string) (*v1.Object, error) {
	if v.renewed == nil {
		return nil, fmt.Errorf("renew workload %q: nothing is being applied: %w", name, errdefs.ErrFailedPrecondition)
	}
	obj, err := v.Get("", name)
	if err != nil {
		return nil, err
	}
	obj.Meta.Generation++
	if err := writeObject(v.tx, obj); err != nil {
		return nil, err
	}
	*v.renewed = append(*v.renewed, obj)
	if v.listed != nil {
		*v.listed = nil
	}
	return obj, noteText(v.tx, obj, event, text)
}

// Rewrite has fn change how objects of a kind are kept, in one transaction, and not
// what they are: neither a generation nor an event tells of it.
func (s *Store) Rewrite(kind string, fn func(*v1.Object)) error {
	err := s.update(func(tx *bolt.Tx) (changes []Change, err error) {
		all, err := view{tx: tx}.List(kind)
		if err != nil {
			return nil, err
		}
		for _, obj := range all {
			before := proto.CloneOf(obj)
			fn(obj)
			if proto.Equal(before, obj) {
				continue
			}
			if err := writeObject(tx, obj); err != nil {
				return nil, err
			}
			changes = append(changes, Change{Object: obj})
		}
		return changes, nil
	})
	if err == nil {
		s.copier.wake()
	}
	return err
}

// Drop forgets an object of which there is nothing else on the machine, unless check,
// which sees the store as it is then, has an error.
func (s *Store) Drop(kind, name string, check func(View) error) error {
	err := s.update(func(tx *bolt.Tx) ([]Change, error) {
		v := view{tx: tx}
		obj, err := v.Get(kind, name)
		if err != nil {
			return nil, err
		}
		if err := check(v); err != nil {
			return nil, err
		}
		return []Change{{Object: obj, Deleted: true}}, remove(tx, obj)
	})
	if err == nil {
		s.copier.wake()
	}
	return err
}
