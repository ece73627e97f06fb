//go:build linux

package main

import (
	"errors"
	"testing"

	"capsule/internal/contexts"
)

// A lab machine takes the context of no capsule elsewhere.
func TestLabNameFree(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	store, err := contexts.Open("")
	if err != nil {
		t.Fatal(err)
	}
	for name, host := range map[string]string{"lab": "127.0.0.1:50000", "kitchen": "192.168.1.20:50000"} {
		if err := store.Put(contexts.Context{Name: name, Host: host}); err != nil {
			t.Fatal(err)
		}
	}
	for name, free := range map[string]bool{"lab": true, "new": true, "kitchen": false, "Kitchen": false} {
		err := labNameFree(name)
		var f *failure
		if (err == nil) != free || err != nil && (!errors.As(err, &f) || f.code != exitUsage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
