package config

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/image"
)

func TestRegistries(t *testing.T) {
	c, _ := newConfig(t)
	r := c.opts.Registries
	for name, bad := range map[string]struct {
		r        *v1.Registry
		password string
	}{
		"no host":             {&v1.Registry{}, ""},
		"a scheme":            {&v1.Registry{Host: "http://x"}, ""},
		"a login in the host": {&v1.Registry{Host: "bob:pw@x", Username: "bob"}, "pw"},
		"no certificate":      {&v1.Registry{Host: "x", CaPem: []byte("none")}, ""},
		"plain with a CA":     {&v1.Registry{Host: "x", CaPem: []byte("none"), PlainHttp: true}, ""},
		"password, no user":   {&v1.Registry{Host: "x"}, "pw"},
		"user, no password":   {&v1.Registry{Host: "x", Username: "bob"}, ""},
	} {
		if err := r.Set(t.Context(), bad.r, bad.password); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.opts.Store.Get(manifest.KindSecret, Logins); !errdefs.IsNotFound(err) {
		t.Errorf("a password of what was refused is kept: %v", err)
	}
	set := func(reg *v1.Registry, password string) {
		t.Helper()
		if err := r.Set(t.Context(), reg, password); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(host string, want image.RegistryAccess) {
		t.Helper()
		got, err := r.Lookup(host)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", host, err, diff)
		}
	}
	declare(t, c, &v1.CapsuleSpec{Hostname: "attic", Registries: []*v1.RegistrySpec{{Name: "docker.io", Mirrors: []string{"lan:5000"}}}})
	set(&v1.Registry{Host: "Registry-1.docker.io", Username: "bob"}, "one")
	set(&v1.Registry{Host: "lan:5000", PlainHttp: true}, "")
	expect("docker.io", image.RegistryAccess{Username: "bob", Password: "one", CA: []byte{}, Mirrors: []string{"lan:5000"}})
	expect("lan:5000", image.RegistryAccess{PlainHTTP: true, CA: []byte{}})
	expect("other.lan", image.RegistryAccess{CA: []byte{}})
	// The password of the same user stays, and is nobody else's.
	set(&v1.Registry{Host: "docker.io", Username: "bob"}, "")
	expect("docker.io", image.RegistryAccess{Username: "bob", Password: "one", CA: []byte{}, Mirrors: []string{"lan:5000"}})
	if err := r.Set(t.Context(), &v1.Registry{Host: "docker.io", Username: "eve"}, ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("another user without a password: %v", err)
	}
	list, err := r.List()
	want := []*v1.Registry{{Host: "docker.io", Username: "bob", CaPem: []byte{}}, {Host: "lan:5000", PlainHttp: true, CaPem: []byte{}}}
	if diff := cmp.Diff(want, list, protocmp.Transform()); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	obj, err := c.opts.Store.Get(manifest.KindCapsule, manifest.CapsuleName)
	if err != nil || obj.GetCapsule().GetSpec().GetHostname() != "attic" || strings.Contains(obj.String(), "\"one\"") {
		t.Errorf("%v, %v", obj, err)
	}
	// What is forgotten leaves no password.
	if err := r.Delete(t.Context(), "docker.io"); err != nil {
		t.Error(err)
	}
	if err := r.Delete(t.Context(), "docker.io"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if _, err := c.opts.Store.Get(manifest.KindSecret, Logins); !errdefs.IsNotFound(err) {
		t.Errorf("the password is still there: %v", err)
	}
}

// A password that is not to be had is told, and is none.
func TestRegistryWithoutItsSecret(t *testing.T) {
	c, _ := newConfig(t)
	declare(t, c, &v1.CapsuleSpec{Registries: []*v1.RegistrySpec{{Name: "a.lan", Username: "bob", Password: "mine/a"}}})
	if got, err := c.opts.Registries.Lookup("a.lan"); err == nil || !strings.Contains(err.Error(), `secret "mine" is not declared`) || got.Username != "" {
		t.Errorf("%+v, %v", got, err)
	}
}

// What was set before there was a configuration is declared, once.
func TestInherit(t *testing.T) {
	c, p := newConfig(t)
	keep := func(bucket, key string, value []byte) {
		t.Helper()
		if err := c.opts.Store.Bucket(bucket).Put(key, value); err != nil {
			t.Fatal(err)
		}
	}
	keep("volumes", "settings", []byte(`{"overcommitMax":400}`))
	for host, one := range map[string]*v1.SetRegistryRequest{
		"a.lan":      {Registry: &v1.Registry{Host: "a.lan", Username: "bob"}, Password: "one"},
		"b.lan:5000": {Registry: &v1.Registry{Host: "b.lan:5000", PlainHttp: true}},
		"c.lan":      {Registry: &v1.Registry{Host: "c.lan", Username: "alone"}},
		"bad/host":   {Registry: &v1.Registry{Host: "bad/host"}},
	} {
		value, err := proto.Marshal(one)
		if err != nil {
			t.Fatal(err)
		}
		keep(oldRegistries, host, value)
	}
	keep(oldRegistries, "rotten", []byte{0xff})
	status(t, c)
	if p.pool.Overcommit != 400 {
		t.Errorf("the pool has %+v", p.pool)
	}
	if got, err := c.opts.Registries.Lookup("a.lan"); err != nil || got.Password != "one" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := c.opts.Registries.Lookup("b.lan:5000"); err != nil || !got.PlainHTTP {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := c.opts.Registries.Lookup("c.lan"); err != nil || got.Username != "" {
		t.Errorf("%+v, %v", got, err)
	}
	// What is taken away since stays away; the old record stays for a version that is
	// gone back to, and no longer.
	if err := c.opts.Registries.Delete(t.Context(), "b.lan:5000"); err != nil {
		t.Fatal(err)
	}
	for _, settled := range []bool{false, true} {
		p.settled = settled
		status(t, c)
		old, err := c.oldRegistries()
		if err != nil || (len(old) == 0) != settled {
			t.Errorf("settled %v: %d kept, %v", settled, len(old), err)
		}
		if list, err := c.opts.Registries.List(); err != nil || len(list) != 2 {
			t.Errorf("%v, %v", list, err)
		}
	}
}
