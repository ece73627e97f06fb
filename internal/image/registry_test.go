package image

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/imagetest"
)

// memory is a KV; the store's own bucket has its tests.
type memory map[string][]byte

func (m memory) Get(key string) ([]byte, bool, error) { v, ok := m[key]; return v, ok, nil }
func (m memory) Put(key string, value []byte) error   { m[key] = value; return nil }
func (m memory) Delete(key string) error              { delete(m, key); return nil }
func (m memory) Each(fn func(string, []byte) error) error {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if err := fn(key, m[key]); err != nil {
			return err
		}
	}
	return nil
}

func TestRegistryBook(t *testing.T) {
	b := NewRegistryBook(memory{})
	server := imagetest.Registry(t, imagetest.RegistryOptions{TLS: true})
	for _, bad := range []struct {
		r        *v1.Registry
		password string
	}{
		{&v1.Registry{}, ""},
		{&v1.Registry{Host: "http://x"}, ""},
		{&v1.Registry{Host: "bob:pw@x"}, ""},
		{&v1.Registry{Host: "x", CaPem: []byte("none")}, ""},
		{&v1.Registry{Host: "x", CaPem: server.CA, PlainHttp: true}, ""},
		{&v1.Registry{Host: "x"}, "password without a user"},
	} {
		if err := b.Set(bad.r, bad.password); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", bad.r, err)
		}
	}
	set := func(r *v1.Registry, password string) {
		t.Helper()
		if err := b.Set(r, password); err != nil {
			t.Fatal(err)
		}
	}
	set(&v1.Registry{Host: "Registry-1.docker.io", Username: "bob"}, "one")
	set(&v1.Registry{Host: "lan:5000", PlainHttp: true}, "")
	if a, ok := b.Lookup("docker.io"); !ok || a.Password != "one" || a.Username != "bob" {
		t.Errorf("%v %v", a.Username, ok)
	}
	set(&v1.Registry{Host: "docker.io", Username: "bob", CaPem: server.CA}, "")
	if a, _ := b.Lookup("docker.io"); a.Password != "one" || len(a.CA) == 0 {
		t.Error("the password of the same user did not stay")
	}
	set(&v1.Registry{Host: "docker.io", Username: "eve"}, "")
	if a, _ := b.Lookup("docker.io"); a.Password != "" {
		t.Error("another user has the password")
	}
	list, err := b.List()
	if err != nil || len(list) != 2 || list[1].GetHost() != "lan:5000" || !list[1].GetPlainHttp() {
		t.Errorf("%v %v", list, err)
	}
	if err := b.Delete("lan:5000"); err != nil {
		t.Error(err)
	}
	if err := b.Delete("lan:5000"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if _, ok := b.Lookup("lan:5000"); ok {
		t.Error("still there")
	}
	if _, ok := b.Lookup("a b"); ok {
		t.Error("found nonsense")
	}
}

// TestNoPasswordInTheClear: an https registry can't send a login to plain HTTP.
func TestNoPasswordInTheClear(t *testing.T) {
	transport, err := transport(RegistryAccess{Username: "bob", Password: "x"})
	if err != nil {
		t.Fatal(err)
	}
	plain := imagetest.Registry(t, imagetest.RegistryOptions{})
	r, err := http.NewRequest("GET", "http://"+plain.Host+"/token", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := transport.RoundTrip(r)
	if err == nil {
		answer.Body.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "plain HTTP") {
		t.Errorf("%v", err)
	}
	if n := plain.Requests(""); n != 0 {
		t.Errorf("%d requests came", n)
	}
}
