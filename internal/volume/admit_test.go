package volume

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/store"
)

const mib = 1 << 20

func TestResize(t *testing.T) {
	for name, tc := range map[string]struct {
		before, asked int64
		larger        bool
		warning, err  string // parts
	}{
		"new":              {0, 64 * mib, true, "", ""},
		"new, odd":         {0, 64*mib + 1, true, "67108865 bytes are rounded up to 68.0 MiB (71303168 bytes)", ""},
		"same":             {64 * mib, 64 * mib, false, "", ""},
		"same, odd":        {64 * mib, 64*mib - 1, false, "rounded up to 64.0 MiB", ""},
		"larger":           {64 * mib, 128 * mib, true, "", ""},
		"smaller":          {3 << 30, 2 << 30, false, "", "it has 3.0 GiB (3221225472 bytes) and can't shrink to 2.0 GiB (2147483648 bytes)"},
		"smaller, an inch": {64 * mib, 60 * mib, false, "", "can't shrink"},
	} {
		larger, warning, err := resize(tc.before, tc.asked)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if larger != tc.larger || !strings.Contains(warning, tc.warning) || (warning == "") != (tc.warning == "") ||
			!strings.Contains(text, tc.err) || (text == "") != (tc.err == "") {
			t.Errorf("%s: %v, %q, %v", name, larger, warning, err)
		}
	}
}

func workloadObject(kind, name string, mounts ...*v1.Mount) *v1.Object {
	return &v1.Object{
		Meta: &v1.Meta{Kind: kind, Name: name},
		Kind: &v1.Object_Workload{Workload: &v1.Workload{Spec: &v1.WorkloadSpec{Image: "web:1", Mounts: mounts}}},
	}
}

// admit applies objects and gives the warnings by name.
func (m *managed) admit(t *testing.T, objs ...*v1.Object) (map[string][]string, error) {
	t.Helper()
	warnings := map[string][]string{}
	_, err := m.opts.Store.Apply(context.Background(), objs, false, func(tx store.View, objs []*v1.Object) error {
		all, err := m.Admit(tx, objs)
		for _, obj := range objs {
			if all[obj.Meta.Uid] != nil {
				warnings[obj.Meta.Name] = all[obj.Meta.Uid]
			}
		}
		return err
	})
	return warnings, err
}

func TestAdmitWorkloads(t *testing.T) {
	m := open(t, newStore(t), nil)
	m.kept(t, "a")
	m.kept(t, "both")
	shared := func() *v1.Mount { return &v1.Mount{Volume: "both", Path: "/x", Shared: true} }
	for _, step := range []struct {
		name string
		objs []*v1.Object
		want map[string][]string
	}{
		{"first", []*v1.Object{workloadObject("Container", "blog", mount("a"))}, nil},
		{"volume missing", []*v1.Object{workloadObject("Container", "early", mount("later"))}, map[string][]string{
			"early": {`waits for volume "later", which does not exist; starts by itself once it is created`},
		}},
		{"second, before the first has it", []*v1.Object{workloadObject("MicroVM", "shop", mount("a"))}, map[string][]string{
			"shop": {`waits for volume "a", which workload "blog" holds; starts by itself once that is stopped or deleted`},
		}},
		{"sharing", []*v1.Object{workloadObject("Container", "one", shared()), workloadObject("Container", "two", shared())}, nil},
		{"a third does not share", []*v1.Object{workloadObject("MicroVM", "three", shared())}, map[string][]string{
			"three": {`waits for volume "both", which workload "one" holds; starts by itself once that is stopped or deleted`},
		}},
	} {
		got, err := m.admit(t, step.objs...)
		if diff := cmp.Diff(step.want, got, cmp.Transformer("empty", func(m map[string][]string) map[string][]string {
			if len(m) == 0 {
				return nil
			}
			return m
		})); err != nil || diff != "" {
			t.Errorf("%s: %v %s", step.name, err, diff)
		}
	}
	// Who has it is not told to wait for those that do.
	if err := m.Claim(t.Context(), Claimant{Workload: "blog"}, []*v1.Mount{mount("a")}); err != nil {
		t.Fatal(err)
	}
	got, err := m.admit(t, workloadObject("Container", "blog", mount("a"), &v1.Mount{Volume: "a", Path: "/again"}))
	if err != nil || len(got) != 0 {
		t.Error(got, err)
	}
}

func TestAdmitShrink(t *testing.T) {
	m := open(t, newStore(t), nil)
	m.kept(t, "a") // 64 MiB
	smaller := &v1.Object{
		Meta: &v1.Meta{Kind: manifest.KindVolume, Name: "a"},
		Kind: &v1.Object_Volume{Volume: &v1.Volume{Spec: &v1.VolumeSpec{Size: 32 * mib}}},
	}
	if _, err := m.admit(t, smaller); err == nil || !strings.Contains(err.Error(), `volume "a": it has 64.0 MiB (67108864 bytes) and can't shrink to 32.0 MiB`) {
		t.Error(err)
	}
}
