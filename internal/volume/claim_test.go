package volume

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

func TestBlocker(t *testing.T) {
	alone := func(name string) claim { return claim{Workload: name} }
	shares := func(name string) claim { return claim{Workload: name, Shared: true} }
	vm := func(name string) claim { return claim{Workload: name, VM: true} }
	for name, tc := range map[string]struct {
		have []claim
		want claim
		by   string
	}{
		"nobody":                         {nil, alone("a"), ""},
		"itself":                         {[]claim{alone("a")}, alone("a"), ""},
		"itself, of the other kind":      {[]claim{alone("a")}, vm("a"), ""},
		"another":                        {[]claim{alone("b")}, alone("a"), "b"},
		"another that shares":            {[]claim{shares("b")}, alone("a"), "b"},
		"shared with one that does not":  {[]claim{alone("b")}, shares("a"), "b"},
		"both share":                     {[]claim{shares("b")}, shares("a"), ""},
		"three share":                    {[]claim{shares("b"), shares("c")}, shares("a"), ""},
		"the second does not share":      {[]claim{shares("b"), shares("a")}, alone("a"), "b"},
		"a VM":                           {[]claim{vm("b")}, shares("a"), "b"},
		"a VM that says shared":          {[]claim{{Workload: "b", VM: true, Shared: true}}, shares("a"), "b"},
		"for a VM":                       {[]claim{shares("b")}, vm("a"), "b"},
		"itself shared, becomes a VM":    {[]claim{shares("a"), shares("b")}, vm("a"), "b"},
		"itself shared alone, then a VM": {[]claim{shares("a")}, vm("a"), ""},
	} {
		if by := blocker(tc.have, tc.want); by != tc.by {
			t.Errorf("%s: blocked by %q, want %q", name, by, tc.by)
		}
	}
}

func TestWanted(t *testing.T) {
	mounts := []*v1.Mount{
		{Volume: "a", Path: "/1", Shared: true},
		{Volume: "b", Path: "/2"},
		{Volume: "c", Path: "/3", Shared: true},
		{Volume: "c", Path: "/4", ReadOnly: true},
	}
	want := map[string]claim{"a": {Workload: "w", Shared: true}, "b": {Workload: "w"}, "c": {Workload: "w"}}
	if diff := cmp.Diff(want, wanted(Claimant{Workload: "w"}, mounts)); diff != "" {
		t.Error(diff)
	}
	for volume, c := range wanted(Claimant{Workload: "w", VM: true}, mounts) {
		if c != (claim{Workload: "w", VM: true}) {
			t.Errorf("VM, %s: %+v", volume, c)
		}
	}
}

// FuzzClaims: whatever is claimed and released, two kernels never have a volume,
// and two containers only when both share it.
func FuzzClaims(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 250, 9})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var claims []claim
		for _, b := range steps {
			c := claim{Workload: string('a' + rune(b&3)), VM: b&4 != 0, Shared: b&8 != 0}
			if b&16 != 0 {
				claims = without(claims, c.Workload)
				continue
			}
			if blocker(claims, c) == "" {
				claims = with(claims, c)
			}
			for i, one := range claims {
				for _, other := range claims[i+1:] {
					if one.Workload == other.Workload || one.VM || other.VM || !one.Shared || !other.Shared {
						t.Fatalf("%+v together with %+v", one, other)
					}
				}
			}
		}
	})
}

func mount(volume string) *v1.Mount { return &v1.Mount{Volume: volume, Path: "/" + volume} }

func TestClaim(t *testing.T) {
	m := open(t, newStore(t), nil)
	for _, name := range []string{"a", "b"} {
		m.kept(t, name)
	}
	blog, shop := Claimant{Workload: "blog"}, Claimant{Workload: "shop", VM: true}
	if err := m.Claim(t.Context(), blog, []*v1.Mount{mount("a")}); err != nil {
		t.Fatal(err)
	}
	// All or none: waiting for a, shop must not keep b from others.
	err := m.Claim(t.Context(), shop, []*v1.Mount{mount("b"), mount("a")})
	var held *HeldError
	if !errors.As(err, &held) || held.Volume != "a" || held.Holder != "blog" {
		t.Fatalf("got %v", err)
	}
	const text = `waits for volume "a", which workload "blog" holds; starts by itself once that is stopped or deleted`
	if err.Error() != text {
		t.Errorf("said %q", err)
	}
	if got := m.Holders("b"); got != nil {
		t.Errorf("b is held by %q", got)
	}
	// Claims are in the store: another daemon knows them.
	m = open(t, m.opts.Store, nil)
	if got := m.Holders("a"); !slices.Equal(got, []string{"blog"}) {
		t.Errorf("a is held by %q", got)
	}
	err = m.Claim(t.Context(), blog, []*v1.Mount{mount("none")})
	if !errors.As(err, &held) || held.Volume != "none" || held.Reason != reasonMissing {
		t.Errorf("got %v", err)
	}
	if err := m.opts.Store.Delete(manifest.KindVolume, "b"); err != nil {
		t.Fatal(err)
	}
	err = m.Claim(t.Context(), blog, []*v1.Mount{mount("b")})
	if !errors.As(err, &held) || held.Reason != reasonDeleting {
		t.Errorf("got %v", err)
	}
	m.declare(t, "c", 64<<20) // not made yet
	err = m.Claim(t.Context(), blog, []*v1.Mount{mount("c")})
	if !errors.As(err, &held) || held.Reason != reasonUnmade {
		t.Errorf("got %v", err)
	}
	if err := m.Release(t.Context(), "blog", []string{"a"}); err != nil {
		t.Fatal(err)
	}
	if got := m.Holders("a"); !slices.Equal(got, []string{"blog"}) {
		t.Errorf("a is held by %q", got)
	}
	if err := m.Release(t.Context(), "blog", nil); err != nil {
		t.Fatal(err)
	}
	if !m.freedOnce("a") {
		t.Error("nobody was told that a is free")
	}
	if err := m.Claim(t.Context(), shop, []*v1.Mount{mount("a")}); err != nil {
		t.Error(err)
	}
}

func TestUnusableBeforeRecover(t *testing.T) {
	m := New(Options{Store: newStore(t)})
	if err := m.Claim(t.Context(), Claimant{Workload: "blog"}, nil); err == nil {
		t.Error("claimed although nothing is known yet")
	}
	if err := m.Release(t.Context(), "blog", nil); err == nil {
		t.Error("released although nothing is known yet")
	}
}
