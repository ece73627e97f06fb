//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/contexts"
)

// TestFleet runs the scripts of testdata/fleet against two capsules, "attic" and
// "kitchen", and a third, "cellar", that does not answer. Attic is the current one.
func TestFleet(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/fleet",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			config := filepath.Join(env.WorkDir, ".config")
			own := filepath.Join(config, "capsule")
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("XDG_CONFIG_HOME", config)
			for _, name := range []string{"attic", "kitchen"} {
				dir := filepath.Join(env.WorkDir, "."+name)
				if err := os.Mkdir(dir, 0o700); err != nil {
					return err
				}
				c, err := startCapsule(dir, nil, env.Defer)
				if err != nil {
					return err
				}
				if err := c.save(own, name, capsulev1.Role_ROLE_ADMIN); err != nil {
					return err
				}
				c.address = "127.0.0.1:1"
				if err := c.save(own, "cellar", capsulev1.Role_ROLE_ADMIN); err != nil {
					return err
				}
			}
			store, err := contexts.Open(own)
			if err != nil {
				return err
			}
			return store.Use("attic")
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": code},
	})
}

// Many capsules are asked, and their rows come in the order in which they were named.
func TestMergeManyInOrder(t *testing.T) {
	var answers []answer
	for i := range 200 {
		answers = append(answers, answer{capsule: fmt.Sprint(i), view: view{
			columns: []string{"NAME"}, rows: [][]string{{"a"}, {"b"}}, names: []string{"a", "b"}, values: []any{map[string]int{"n": i}},
			yaml: [][]byte{[]byte("x: 1\n")}, below: &view{columns: []string{"SIZE"}, rows: [][]string{{"1"}}},
		}})
	}
	answers[3] = answer{capsule: "3", failed: &failure{}}
	v := merge(answers)
	if len(v.rows) != 398 || len(v.below.rows) != 199 || len(v.names) != 398 || len(v.yaml) != 199 {
		t.Fatal(len(v.rows), len(v.below.rows), len(v.names), len(v.yaml))
	}
	if diff := cmp.Diff([][]string{{"2", "b"}, {"4", "a"}}, v.rows[5:7]); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"CAPSULE", "NAME"}, v.columns); diff != "" {
		t.Error(diff)
	}
	data, err := view{values: v.values[:1]}.json()
	if err != nil || strings.Join(strings.Fields(string(data)), "") != `[{"capsule":"0","n":0}]` {
		t.Errorf("%s, %v", data, err)
	}
}

func TestTagged(t *testing.T) {
	for _, c := range []struct {
		value any
		want  string
	}{
		{map[string]int{"a": 1}, `{"capsule":"x","a":1}`},
		{map[string]int{}, `{"capsule":"x"}`},
		{"text", `{"capsule":"x","value":"text"}`},
		{&capsulev1.Meta{Name: "web"}, `{"capsule":"x","name":"web"}`},
	} {
		if got, err := encodeJSON(tagged{"x", c.value}); err != nil || string(got) != c.want {
			t.Errorf("%v: %s, %v", c.value, got, err)
		}
	}
}
