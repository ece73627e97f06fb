//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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

// The exit code is that of all failures, if they have one.
func TestExitOfSeveral(t *testing.T) {
	for _, c := range []struct {
		codes []int // 0 is an answer
		want  int
	}{
		{[]int{0, 0}, 0},
		{[]int{exitFailed, 0}, exitFailed},
		{[]int{0, exitRefused}, exitRefused},
		{[]int{exitRefused, 0, exitRefused}, exitRefused},
		{[]int{exitNotReady, exitNotReady}, exitNotReady},
		{[]int{exitUsage}, exitUsage},
		{[]int{exitNotReady, exitRefused}, exitFailed},
		{[]int{exitRefused, exitFailed}, exitFailed},
		{[]int{exitRefused, exitNotReady, exitRefused}, exitFailed},
	} {
		var answers []answer
		for i, code := range c.codes {
			one := answer{capsule: fmt.Sprint(i)}
			if code != 0 {
				one.failed = &failure{code, errors.New("no"), ""}
			}
			answers = append(answers, one)
		}
		a := &app{ui: &ui{out: io.Discard, err: io.Discard}}
		got := 0
		var exit remoteExit
		if err := a.failures(answers); errors.As(err, &exit) {
			got = int(exit)
		} else if err != nil {
			t.Error(err)
		}
		if got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.codes, got, c.want)
		}
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

// No more than fanMax are asked at a time, and all are.
func TestAskAllIsBounded(t *testing.T) {
	var names []string
	for i := range 5 * fanMax {
		names = append(names, fmt.Sprint(i))
	}
	var now, most atomic.Int32
	var full sync.WaitGroup
	full.Add(fanMax)
	a := &app{ui: &ui{out: io.Discard, err: io.Discard}}
	answers := a.askAll(t.Context(), names, func(_ context.Context, a *app) (view, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		if len(a.capsule) == 1 && a.capsule[0]-'0' < fanMax { // the first wait for each other
			full.Done()
			full.Wait()
		}
		return view{names: []string{a.capsule}}, nil
	})
	if most.Load() != fanMax {
		t.Errorf("%d at a time", most.Load())
	}
	for i, one := range answers {
		if one.capsule != names[i] || len(one.view.names) != 1 || one.view.names[0] != names[i] {
			t.Errorf("answer %d is of %q: %q", i, one.capsule, one.view.names)
		}
	}
}

// Who doesn't want to wait for a capsule that hangs sees what the others said.
func TestInterruptShowsTheOthers(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	store, err := contexts.Open(filepath.Join(dir, "capsule"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"attic", "cellar"} {
		if err := store.Put(contexts.Context{Name: name, Host: "127.0.0.1:1"}); err != nil {
			t.Fatal(err)
		}
	}
	var out, errs bytes.Buffer
	a := &app{ui: &ui{out: &out, err: &errs}, everyone: true, output: formatTable}
	err = a.read(ctx, func(ctx context.Context, a *app) (view, error) {
		if a.capsule == "cellar" {
			<-ctx.Done()
			return view{}, ctx.Err()
		}
		a.ui.note("half of a line, and\nanother")
		cancel()
		return view{columns: []string{"NAME"}, rows: [][]string{{"web"}}}, nil
	})
	if !errors.Is(err, remoteExit(exitFailed)) {
		t.Errorf("got %v", err)
	}
	if want := "CAPSULE   NAME\nattic     web\n"; out.String() != want {
		t.Errorf("got %q", &out)
	}
	if want := "attic: half of a line, and\nattic: another\nerror: capsule \"cellar\": interrupted\n"; errs.String() != want {
		t.Errorf("got %q", &errs)
	}
}
