package drivertest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"capsule/internal/imagetest"
	"capsule/internal/workload"
)

func (s *suite) image(t *testing.T) {
	t.Run("IMG-07 whiteouts", s.whiteouts)
	t.Run("IMG-08 126 layers", slow(s.manyLayers))
	t.Run("IMG-15 low port as a user", s.lowPort)
	t.Run("IMG-20 content of VOLUME", s.volumeContent)
}

// up starts an instance of an image that waits.
func (s *suite) up(t *testing.T, i imagetest.Image, change ...func(*workload.Instance)) workload.Instance {
	t.Helper()
	in := s.instance("print", "ready", "then", "sleep", "10h")
	in.Image = s.Image(t, i)
	for _, fn := range change {
		fn(&in)
	}
	s.start(t, in)
	s.printed(t, in, "ready")
	return in
}

func (s *suite) whiteouts(t *testing.T) {
	first := imagetest.NewLayer().Dir("d", 0o755).File("d/old", 0o644, "old").
		Dir("t", 0o755).File("t/keep", 0o644, "keep").Symlink("ln", "/t")
	second := imagetest.NewLayer().File("d/new", 0o644, "new").Opaque("d").
		Dir("ln", 0o755).Opaque("ln").File("ln/n", 0o644, "n").Whiteout("absent")
	in := s.up(t, imagetest.PayloadImage(t, nil, first, second))
	for dir, want := range map[string][]string{"/d": {"new"}, "/t": {"keep"}, "/ln": {"n"}} {
		_, out, errs := s.command(t, in.ID, payload("ls", "-r", dir))
		if diff := cmp.Diff(want, lines(out)); diff != "" {
			t.Errorf("%s: %s%s", dir, diff, errs)
		}
	}
	if _, out, _ := s.command(t, in.ID, payload("ls", "/")); strings.Contains(out, ".wh.") {
		t.Errorf("a marker is visible: %q", out)
	}
}

func (s *suite) manyLayers(t *testing.T) {
	const count = 126
	var layers []*imagetest.Layer
	for i := range count {
		layers = append(layers, imagetest.NewLayer().File(fmt.Sprintf("l/%03d", i), 0o644, fmt.Sprint(i)))
	}
	in := s.up(t, imagetest.PayloadImage(t, nil, layers...))
	check := func() {
		t.Helper()
		code, out, errs := s.command(t, in.ID, payload("cat", "/l/000", "/l/125"))
		if code != 0 || out != "0125" {
			t.Errorf("code %d, %q %q", code, out, errs)
		}
		if _, out, _ := s.command(t, in.ID, payload("ls", "/l")); len(lines(out)) != count {
			t.Errorf("%d files, want %d", len(lines(out)), count)
		}
	}
	check()
	s.restart()
	if err := s.driver.Stop(t.Context(), in.ID, sigkill, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.driver.Start(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	s.printedTimes(t, in, "ready", 2)
	check()
}

// fileCapability is cap_net_bind_service, permitted and effective, as in a
// security.capability attribute of version 2 (linux/capability.h).
const fileCapability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func (s *suite) lowPort(t *testing.T) {
	layer := imagetest.NewLayer().Xattr("security.capability", fileCapability).
		File("srv", 0o755, string(imagetest.Payload(t)))
	in := s.instance("id", "then", "bind", ":80", "then", "print", "bound")
	in.Image = s.Image(t, imagetest.PayloadImage(t, nil, layer))
	in.Args[0], in.User = "/srv", "1000"
	out, o := s.result(t, in)
	if o.ExitCode != 0 || !strings.Contains(out, "uid=1000") || !strings.Contains(out, "bound\n") {
		t.Errorf("%+v, printed %q", o, out)
	}
}

func (s *suite) volumeContent(t *testing.T) {
	layer := imagetest.NewLayer().Owner(1000, 1000).Dir("mnt", 0o750).File("mnt/f", 0o640, "hi")
	i := imagetest.PayloadImage(t, nil, layer)
	i.Config = ocispec.ImageConfig{Volumes: map[string]struct{}{"/mnt": {}}}
	in := s.up(t, i, func(in *workload.Instance) { in.User = "app" })
	_, out, errs := s.command(t, in.ID, payload("cat", "/mnt/f", "then", "write", "/mnt/g", "x", "then", "stat", "/mnt"))
	if !strings.HasPrefix(out, "hi") || !strings.Contains(out, "1000:1000") || !strings.Contains(out, "750") && !strings.Contains(out, "rwxr-x---") {
		t.Errorf("%q %q", out, errs)
	}
}
