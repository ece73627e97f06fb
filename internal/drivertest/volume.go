package drivertest

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"capsule/internal/imagetest"
	"capsule/internal/workload"
)

// volumes shows what an instance sees of volumes, and what it leaves in them. How
// they are made, filled and lent is the same for every kind, and not a driver's.
func (s *suite) volumes(t *testing.T) {
	t.Run("read and write", s.mounts)
	t.Run("VOL-01 a new volume is empty", s.newVolume)
	t.Run("a folder in a folder", s.nestedMounts)
	t.Run("over links and files of the image", s.mountPoints)
	t.Run("known at the start only", s.lateSources)
	t.Run("outlives instances", s.volumeStays)
	t.Run("frozen", s.frozen)
}

// at is a volume mounted at a path.
func at(m workload.Mount, path string) workload.Mount {
	m.Path = path
	return m
}

func readOnly(m workload.Mount) workload.Mount {
	m.ReadOnly = true
	return m
}

// mounting runs an instance that waits, with mounts.
func (s *suite) mounting(t *testing.T, mounts ...workload.Mount) workload.Instance {
	t.Helper()
	in := s.instance("print", "ready", "then", "sleep", "10h")
	in.Mounts = mounts
	s.start(t, in)
	s.printed(t, in, "ready")
	return in
}

// wants runs a command that has to print something.
func (s *suite) wants(t *testing.T, id workload.ID, want string, args ...string) {
	t.Helper()
	if code, out, errs := s.command(t, id, payload(args...)); code != 0 || out != want {
		t.Errorf("%q: code %d, %q %q, want %q", args, code, out, errs, want)
	}
}

func (s *suite) kill(t *testing.T, id workload.ID) {
	t.Helper()
	if err := s.driver.Stop(t.Context(), id, sigkill, 0); err != nil {
		t.Fatal(err)
	}
}

func (s *suite) mounts(t *testing.T) {
	shut, _ := s.Volume(t, map[string]string{"f": "data\n"})
	open, read := s.Volume(t, nil)
	in := s.mounting(t, readOnly(at(shut, "/ro")), at(open, "/new/rw"))
	s.wants(t, in.ID, "data\n", "cat", "/ro/f")
	if code, _, errs := s.command(t, in.ID, payload("write", "/ro/g", "x")); code == 0 || !strings.Contains(errs, "read-only") {
		t.Errorf("write to a read-only mount: code %d, %q", code, errs)
	}
	s.wants(t, in.ID, "", "write", "/new/rw/g", "x")
	s.kill(t, in.ID)
	if text := read("g"); text != "x\n" {
		t.Errorf("the file outside is %q", text)
	}
}

// Database images refuse a folder with anything in it, such as lost+found.
func (s *suite) newVolume(t *testing.T) {
	fresh, _ := s.Volume(t, nil)
	used, _ := s.Volume(t, map[string]string{"f": "data\n", ".hidden": ""})
	in := s.mounting(t, at(fresh, "/var/lib/postgresql/data"), at(used, "/used"))
	s.wants(t, in.ID, "", "ls", "-r", "/var/lib/postgresql/data")
	_, out, errs := s.command(t, in.ID, payload("ls", "-r", "/used"))
	if diff := cmp.Diff([]string{".hidden", "f"}, lines(out)); diff != "" {
		t.Error(diff, errs)
	}
}

// A volume in a volume hides what that has there, and is not written to it.
func (s *suite) nestedMounts(t *testing.T) {
	outer, readOuter := s.Volume(t, map[string]string{"f": "outer\n"})
	inner, readInner := s.Volume(t, map[string]string{"f": "inner\n"})
	in := s.mounting(t, at(outer, "/data"), at(inner, "/data/deep/er"))
	s.wants(t, in.ID, "outer\ninner\n", "cat", "/data/f", "/data/deep/er/f")
	s.wants(t, in.ID, "", "write", "/data/g", "to outer", "then", "write", "/data/deep/er/g", "to inner")
	s.kill(t, in.ID)
	if out, in := readOuter("g"), readInner("g"); out != "to outer\n" || in != "to inner\n" {
		t.Errorf("outside are %q and %q", out, in)
	}
}

// Links of the image lead to where the volume is; what is a file there is refused
// before anything is stopped for it.
func (s *suite) mountPoints(t *testing.T) {
	layer := imagetest.NewLayer().Dir("srv", 0o755).Dir("srv/data", 0o755).File("srv/data/old", 0o644, "of the image\n").
		Symlink("link", "/srv/data").Symlink("away", "/not/there").File("file", 0o644, "text\n").Symlink("top", "/")
	img := s.Image(t, imagetest.PayloadImage(t, nil, layer))
	volume, _ := s.Volume(t, map[string]string{"f": "data\n"})
	other, _ := s.Volume(t, map[string]string{"f": "other\n"})
	in := s.instance("print", "ready", "then", "sleep", "10h")
	in.Image, in.Mounts = img, []workload.Mount{at(volume, "/link"), at(other, "/away/dir")}
	s.start(t, in)
	s.printed(t, in, "ready")
	s.wants(t, in.ID, "f\n", "ls", "/srv/data")
	s.wants(t, in.ID, "data\nother\n", "cat", "/link/f", "/not/there/dir/f")
	for path, want := range map[string]string{"/file": "is a file", "/file/below": "leads through a file", "/top": "is a link to /"} {
		bad := s.instance("true")
		bad.Image, bad.Mounts = img, []workload.Mount{at(volume, path)}
		if err := s.driver.Prepare(t.Context(), bad); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), path+`" `+want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
		if o := observe(t, s.driver, bad.ID); o != nil {
			t.Errorf("%s: it is listed: %+v", path, o)
		}
	}
}

// An instance is prepared before its volumes are there, and each start may find
// others: a restored one has another source.
func (s *suite) lateSources(t *testing.T) {
	first, _ := s.Volume(t, map[string]string{"f": "first\n"})
	second, _ := s.Volume(t, map[string]string{"f": "second\n"})
	in := s.instance("cat", "/mnt/f", "then", "sleep", "10h")
	in.Mounts = []workload.Mount{{Volume: first.Volume, Path: "/mnt"}}
	s.prepare(t, in)
	for _, volume := range []workload.Mount{first, second} {
		in.Mounts = []workload.Mount{at(volume, "/mnt")}
		if err := s.driver.Start(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		s.printed(t, in, map[string]string{first.Source: "first", second.Source: "second"}[volume.Source])
		s.kill(t, in.ID)
	}
	if out := output(t, in); out != "first\nsecond\n" {
		t.Errorf("printed %q", out)
	}
}

// What is in a volume is there for the next instance, with its owner and mode.
func (s *suite) volumeStays(t *testing.T) {
	volume, _ := s.Volume(t, nil)
	in := s.mounting(t, at(volume, "/data"))
	s.wants(t, in.ID, "", "mkdir", "/data/d", "then", "write", "/data/d/f", "kept")
	if err := s.driver.Remove(t.Context(), in.ID); err != nil {
		t.Fatal(err)
	}
	next := s.mounting(t, readOnly(at(volume, "/elsewhere")))
	s.wants(t, next.ID, "kept\n", "cat", "/elsewhere/d/f")
	_, out, _ := s.command(t, next.ID, payload("stat", "/elsewhere/d/f"))
	if fields := strings.Fields(out); !slices.Equal(fields, []string{"-rw-r--r--", "0:0", "5"}) {
		t.Errorf("it is %q", out)
	}
}

// Writers go on after a freeze, thawed twice or by nobody else.
func (s *suite) frozen(t *testing.T) {
	volume, read := s.Volume(t, nil)
	in := s.mounting(t, at(volume, "/data"))
	s.wants(t, in.ID, "", "write", "/data/before", "a freeze")
	thaw, err := s.driver.Freeze(t.Context(), in.ID, patience/4)
	if err != nil {
		t.Fatal(err)
	}
	thaw()
	thaw()
	s.wants(t, in.ID, "", "write", "/data/after", "a freeze")
	s.kill(t, in.ID)
	if before, after := read("before"), read("after"); before != "a freeze\n" || after != "a freeze\n" {
		t.Errorf("%q, %q", before, after)
	}
}
