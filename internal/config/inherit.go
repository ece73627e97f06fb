package config

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/store"
	"capsule/internal/volume"
)

// Where registries were kept before they were declared with the machine: by host, what
// "capsulectl registry set" had sent, passwords included.
const (
	oldRegistries = "registries"
	ownBucket     = "config"
	inherited     = "inherited" // in ownBucket: what was set before is declared
)

// inherit declares what was set before there was a configuration, once. What it was
// read from stays until this version is there for good: one that is gone back to reads
// it.
func (c *Config) inherit(ctx context.Context) error {
	_, done, err := c.opts.Store.Bucket(ownBucket).Get(inherited)
	if err != nil {
		return err
	}
	if !done {
		return c.takeOver(ctx)
	}
	if c.cleared || !c.opts.Settled() {
		return nil
	}
	old, err := c.oldRegistries()
	if err != nil {
		return err
	}
	for host := range old {
		if err := c.opts.Store.Bucket(oldRegistries).Delete(host); err != nil {
			return fmt.Errorf("forget what was set of registry %q: %w", host, err)
		}
	}
	c.cleared = true
	return nil
}

func (c *Config) oldRegistries() (map[string]*v1.SetRegistryRequest, error) {
	old := map[string]*v1.SetRegistryRequest{}
	err := c.opts.Store.Bucket(oldRegistries).Each(func(host string, value []byte) error {
		one := &v1.SetRegistryRequest{}
		if err := proto.Unmarshal(value, one); err != nil {
			c.log.Error("read what was set of a registry; it is left out", "registry", host, "error", err)
			return nil
		}
		old[host] = one
		return nil
	})
	return old, err
}

func (c *Config) takeOver(ctx context.Context) error {
	overcommit, err := volume.KeptOvercommit(c.opts.Store)
	if err != nil {
		c.log.Error("read what was set of the pool; it is as it comes", "error", err)
	}
	old, err := c.oldRegistries()
	if err != nil {
		return err
	}
	spec, err := Spec(c.opts.Store)
	if err != nil {
		return err
	}
	for host, one := range old {
		if named(spec, host) != nil { // declared meanwhile
			continue
		}
		if one.GetPassword() == "" { // a user without one is of no use
			one.GetRegistry().Username = ""
		}
		err := c.opts.Registries.Set(ctx, one.GetRegistry(), one.GetPassword())
		if errdefs.IsInvalidArgument(err) {
			c.log.Error("declare what was set of a registry; it is left out", "registry", host, "error", err)
		} else if err != nil {
			return err
		}
	}
	_, err = c.opts.Store.Edit(ctx, manifest.KindCapsule, manifest.CapsuleName, func(obj *v1.Object) error {
		if obj.GetCapsule().GetSpec() == nil {
			obj.Kind = machine(&v1.CapsuleSpec{}).Kind
		}
		if spec := obj.GetCapsule().GetSpec(); overcommit != 0 && spec.GetPool().GetOvercommit() == 0 {
			if spec.Pool == nil {
				spec.Pool = &v1.PoolLimits{}
			}
			spec.Pool.Overcommit = overcommit
		}
		return nil
	}, func(tx store.View, _ []*v1.Object) error {
		table, err := tx.Table(ownBucket)
		if err != nil {
			return err
		}
		return table.Put(inherited, []byte("1"))
	})
	return err
}
