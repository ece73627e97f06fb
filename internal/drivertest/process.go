package drivertest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"capsule/internal/imagetest"
	"capsule/internal/workload"
)

func (s *suite) process(t *testing.T) {
	t.Run("IMG-13 environment", s.environment)
	t.Run("IMG-10 users", s.users)
	t.Run("programs", s.programs)
	t.Run("folder and host name", s.surroundings)
	t.Run("privileges", s.privileges)
}

func (s *suite) environment(t *testing.T) {
	in := s.instance("cat", "/proc/1/environ")
	in.Env = []string{"A=x=y=", "B==", "C=l1\nl2", "D=", `E="q"`, "PATH=/bin", "HOME=/h"}
	out, _ := s.result(t, in)
	got := strings.Split(strings.TrimSuffix(out, "\x00"), "\x00")
	if diff := cmp.Diff(in.Env, got); diff != "" {
		t.Error(diff)
	}
}

func (s *suite) users(t *testing.T) {
	bare := s.Image(t, imagetest.Image{
		Layers: []*imagetest.Layer{imagetest.NewLayer().File("payload", 0o755, string(imagetest.Payload(t)))},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/payload"}},
	})
	for _, tc := range []struct {
		user    string
		bare    bool // an image without /etc/passwd
		want    string
		refused string // part of the message
	}{
		{user: "", want: "uid=0 gid=0 groups=[0] /root"},
		{user: "app", want: "uid=1000 gid=1000 groups=[1000 2000] /"},
		{user: "1000", want: "uid=1000 gid=1000 groups=[1000 2000] /"},
		{user: "app:extra", want: "uid=1000 gid=2000 groups=[2000] /"},
		{user: "app:5", want: "uid=1000 gid=5 groups=[5] /"},
		{user: "1234", bare: true, want: "uid=1234 gid=0 groups=[0] /"},
		{user: "1234:55", bare: true, want: "uid=1234 gid=55 groups=[55] /"},
		{user: "ghost", refused: `"ghost"`},
		{user: "app", bare: true, refused: `"app"`},
		{user: "app:nogrp", refused: `"nogrp"`},
		{user: "-1", refused: `"-1"`},
		{user: "4294967296", refused: `"4294967296"`},
	} {
		t.Run(fmt.Sprintf("%s bare=%v", tc.user, tc.bare), func(t *testing.T) {
			in := s.instance("id", "then", "env", "HOME")
			in.User = tc.user
			if tc.bare {
				in.Image = bare
			}
			if tc.refused != "" {
				s.refused(t, in, tc.refused)
				return
			}
			out, _ := s.result(t, in)
			id, home, _ := strings.Cut(strings.TrimSpace(out), "\n")
			// Whether the kernel's list repeats the main group is no matter.
			want, wantHome, _ := strings.Cut(tc.want, "] ")
			id = strings.TrimSuffix(id, "]")
			if !sameID(id, want) || home != wantHome {
				t.Errorf("got %q, want %q", out, tc.want)
			}
		})
	}
}

// sameID compares "uid=U gid=G groups=[A B", where the main group may be
// missing in the list.
func sameID(got, want string) bool {
	gotID, gotGroups, _ := strings.Cut(got, " groups=[")
	wantID, wantGroups, _ := strings.Cut(want, " groups=[")
	if gotID != wantID {
		return false
	}
	_, gid, _ := strings.Cut(gotID, "gid=")
	without := func(groups string) string {
		var rest []string
		for _, g := range strings.Fields(groups) {
			if g != gid {
				rest = append(rest, g)
			}
		}
		return strings.Join(rest, " ")
	}
	return without(gotGroups) == without(wantGroups)
}

// refused checks that Prepare refuses with the text and leaves nothing.
func (s *suite) refused(t *testing.T, in workload.Instance, text string) {
	t.Helper()
	err := s.driver.Prepare(t.Context(), in)
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want it refused with %s", err, text)
	}
	if err != nil && (strings.Contains(err.Error(), os.TempDir()) || strings.Contains(err.Error(), "callback")) {
		t.Errorf("%q tells of our own insides", err)
	}
	if o := observe(t, s.driver, in.ID); o != nil {
		t.Errorf("it is listed: %+v", o)
		_ = s.driver.Remove(t.Context(), in.ID)
	}
}

// A program that can't be run is found by Prepare, while an older one serves.
func (s *suite) programs(t *testing.T) {
	img := imagetest.PayloadImage(t, nil, imagetest.NewLayer().
		Dir("bin", 0o755).Symlink("bin/print", "/payload").
		Dir("opt", 0o755).File("opt/plain", 0o644, "#!/payload\n").File("opt/script", 0o755, "#!/payload print\n").
		File("opt/noint", 0o755, "#!/bin/none\n").File("opt/text", 0o755, "hello").
		Symlink("opt/circle", "circle").File("opt/root", 0o700, string(imagetest.Payload(t))))
	stored := s.Image(t, img)
	for _, tc := range []struct {
		program, user string
		refused       string
		out           string
	}{
		{program: "print", out: "x\n"},
		{program: "bin/print", out: "x\n"},
		{program: "/opt/script", out: "/opt/script x\n"},
		{program: "nosuch", refused: `"nosuch"`},
		{program: "/no/such", refused: `"/no/such"`},
		{program: "/opt", refused: "folder"},
		{program: "/opt/plain", refused: "not executable"},
		{program: "/opt/noint", refused: `"/bin/none"`},
		{program: "/opt/text", refused: "no program"},
		{program: "/opt/circle", refused: "circle"},
		{program: "/opt/root", user: "app", refused: "not executable"},
	} {
		t.Run(tc.program, func(t *testing.T) {
			in := s.instance()
			in.Image, in.Args, in.User = stored, []string{tc.program, "x"}, tc.user
			if tc.refused != "" {
				s.refused(t, in, tc.refused)
				return
			}
			if out, o := s.result(t, in); out != tc.out {
				t.Errorf("printed %q, want %q; %+v", out, tc.out, o)
			}
		})
	}
}

func (s *suite) surroundings(t *testing.T) {
	in := s.instance("cwd", "then", "hostname", "then", "cat", "/etc/hosts", "/etc/resolv.conf")
	in.Cwd = "/made/here"
	out, _ := s.result(t, in)
	want := "/made/here\n" + in.Network.Hostname + "\n"
	for _, file := range []string{in.Network.Hosts, in.Network.ResolvConf} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want += string(b)
	}
	if out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

func (s *suite) privileges(t *testing.T) {
	in := s.instance("status", "NoNewPrivs", "Seccomp", "CapEff", "CapBnd")
	out, _ := s.result(t, in)
	wants := []string{"NoNewPrivs:\t1"}
	if s.Filtered {
		wants = append(wants, "Seccomp:\t2")
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	in = s.instance("status", "CapEff")
	in.User = "app"
	if out, _ := s.result(t, in); out != "CapEff:\t0000000000000000\n" {
		t.Errorf("capabilities of a user: %q", out)
	}
}
