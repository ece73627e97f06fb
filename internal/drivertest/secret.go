package drivertest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"capsule/internal/imagetest"
	"capsule/internal/workload"
)

// secrets shows what an instance is given beside its settings, and that it is found
// nowhere else.
func (s *suite) secrets(t *testing.T) {
	t.Run("in the environment", s.secretEnv)
	t.Run("new ones with each start", s.laterSecrets)
	t.Run("files", s.files)
	t.Run("files that can't be", s.badFiles)
	t.Run("on no disk and in no list of processes", s.hidden)
}

func (s *suite) secretEnv(t *testing.T) {
	in := s.instance("cat", "/proc/1/environ", "then", "print", "\nready", "then", "sleep", "10h")
	in.Env = []string{"A=1", "TOKEN=of the image", "PATH=/bin", "HOME=/h"}
	in.SecretEnv = []string{"PASSWORD=a=b\nc \"", "TOKEN=secret", "EMPTY="}
	s.start(t, in)
	s.printed(t, in, "ready")
	want := []string{"A=1", "TOKEN=secret", "PATH=/bin", "HOME=/h", "PASSWORD=a=b\nc \"", "EMPTY="}
	got, _, _ := strings.Cut(output(t, in), "\x00\nready")
	if diff := cmp.Diff(want, strings.Split(got, "\x00")); diff != "" {
		t.Error(diff)
	}
	s.restart()
	_, out, errs := s.command(t, in.ID, payload("env", "TOKEN", "then", "env", "EMPTY", "then", "env", "A"))
	if out != "secret\n\n1\n" {
		t.Errorf("a command has %q %q", out, errs)
	}
	e := payload("env", "TOKEN")
	e.Env = []string{"TOKEN=of the caller"}
	if _, out, errs = s.command(t, in.ID, e); out != "of the caller\n" {
		t.Errorf("a command has %q %q", out, errs)
	}
}

func (s *suite) laterSecrets(t *testing.T) {
	in := s.instance("env", "TOKEN", "then", "cat", "/etc/token", "then", "trap", "15", "0")
	in.Env = append(in.Env, "TOKEN=")
	in.Files = []workload.File{{Path: "/etc/token", Mode: 0o400}}
	s.prepare(t, in)
	for run, token := range []string{"first\n", "second\n", ""} {
		in.SecretEnv, in.Files[0].Content = nil, []byte(token+"ready\n")
		if token != "" {
			in.SecretEnv = []string{"TOKEN=" + strings.TrimSpace(token)}
		}
		if err := s.driver.Start(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		s.printedTimes(t, in, "ready", 2*(run+1)) // trap says it, too
		if err := s.driver.Stop(t.Context(), in.ID, sigterm, patience); err != nil {
			t.Fatal(err)
		}
	}
	got := strings.NewReplacer("ready\n", "", "got 15\n", "").Replace(output(t, in)) // trap's words
	if want := "first\nfirst\nsecond\nsecond\n\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}

func (s *suite) files(t *testing.T) {
	layer := imagetest.NewLayer().File("etc/app.conf", 0o644, "of the image\n").Symlink("etc/link", "/srv/data")
	volume, _ := s.Volume(t, map[string]string{"f": "of the volume\n"})
	in := s.instance("print", "ready", "then", "sleep", "10h")
	in.Image, in.User = s.Image(t, imagetest.PayloadImage(t, nil, layer)), "app"
	in.Mounts = []workload.Mount{at(volume, "/data")}
	in.Files = []workload.File{
		{Path: "/etc/app.conf", Content: []byte("setting\n"), Mode: 0o444},
		{Path: "/etc/key", Content: []byte{0, 255, '\n'}, Mode: 0o400},
		{Path: "/etc/of-root", Content: []byte("root\n"), Mode: 0o640, Owner: "root:extra"},
		{Path: "/etc/by-number", Mode: 0o600, Owner: "1234:55"},
		{Path: "/etc/link/deep/f", Content: []byte("by a link\n"), Mode: 0o444},
		{Path: "/data/new/f", Content: []byte("in a volume\n"), Mode: 0o444},
		{Path: "/opt/run", Content: []byte("#!/payload print\n"), Mode: 0o555},
	}
	s.start(t, in)
	s.printed(t, in, "ready")
	s.wants(t, in.ID, "setting\n\x00\xff\nroot\nby a link\nof the volume\nin a volume\n",
		"cat", "/etc/app.conf", "/etc/key", "/etc/of-root", "/srv/data/deep/f", "/data/f", "/data/new/f")
	s.wants(t, in.ID, "-r--r--r-- 1000:1000 8\n-r-------- 1000:1000 3\n-rw-r----- 0:2000 5\n-rw------- 1234:55 0\n",
		"stat", "/etc/app.conf", "/etc/key", "/etc/of-root", "/etc/by-number")
	if code, out, errs := s.command(t, in.ID, workload.Exec{Command: []string{"/opt/run"}}); code != 0 || out != "/opt/run\n" {
		t.Errorf("a script: %d, %q %q", code, out, errs)
	}
	e := payload("write", "/etc/of-root", "x")
	e.User = "root"
	if code, _, errs := s.command(t, in.ID, e); code == 0 || !strings.Contains(errs, "read-only") {
		t.Errorf("root writes to a file: code %d, %q", code, errs)
	}
	// As after a power cut, when only the disk is left.
	s.kill(t, in.ID)
	s.restart()
	if err := s.driver.Start(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	s.printedTimes(t, in, "ready", 2)
	s.wants(t, in.ID, "setting\n", "cat", "/etc/app.conf")
}

// What an image does not allow is found before anything is stopped for it.
func (s *suite) badFiles(t *testing.T) {
	layer := imagetest.NewLayer().Dir("folder", 0o755).File("file", 0o644, "text\n")
	img := s.Image(t, imagetest.PayloadImage(t, nil, layer))
	for text, f := range map[string]workload.File{
		`"ghost"`:                      {Path: "/f", Owner: "ghost"},
		`"/folder" is a folder`:        {Path: "/folder"},
		`"/file/f" leads through a fi`: {Path: "/file/f"},
	} {
		in := s.instance("true")
		in.Image, in.Files = img, []workload.File{f}
		s.refused(t, in, text)
	}
}

// hidden looks for secrets on the disks of the runtime, and in what this machine says
// of its processes, while an instance has them and afterwards.
func (s *suite) hidden(t *testing.T) {
	variable, content, own := rand.Text(), rand.Text(), rand.Text()
	in := s.instance("print", "ready", "then", "sleep", "10h")
	in.Env = append(in.Env, "OWN="+own) // of the instance's own processes
	in.SecretEnv = []string{"TOKEN=" + variable}
	in.Files = []workload.File{{Path: "/etc/token", Content: []byte(content), Mode: 0o400}}
	s.start(t, in)
	s.printed(t, in, "ready")
	s.wants(t, in.ID, content, "cat", "/etc/token")
	for _, text := range []string{variable, content} {
		for _, file := range append(onDisk(t, s.Disks, text), ofProcesses(t, text, own)...) {
			t.Errorf("%s holds a secret of an instance that runs", file)
		}
	}
	if len(s.Disks) > 0 && s.Kind == "Container" && len(onDisk(t, s.Disks, own)) == 0 {
		t.Error("what the runtime keeps was not looked at")
	}
	s.kill(t, in.ID)
	for _, text := range []string{variable, content} {
		for _, file := range append(onDisk(t, append(slices.Clip(s.Disks), s.Memory...), text), ofProcesses(t, text, own)...) {
			t.Errorf("%s holds a secret of an instance that ended", file)
		}
	}
}

// onDisk are the files below folders that hold a text.
func onDisk(t *testing.T, dirs []string, text string) (found []string) {
	t.Helper()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && !entry.Type().IsRegular() {
				return nil
			}
			if err != nil {
				return err
			}
			holds, err := FileHolds(path, text)
			if holds {
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	return found
}

// FileHolds looks for a text in the parts of a file that are no holes.
func FileHolds(path, text string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	for at := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing more
			return false, nil
		}
		if err != nil {
			return false, err
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return false, err
		}
		data, err := io.ReadAll(io.NewSectionReader(f, start, end-start))
		if err != nil || bytes.Contains(data, []byte(text)) {
			return err == nil, err
		}
		at = end
	}
}

// ofProcesses are the argument lists and environments of this machine's processes that
// hold a text. Those that have an instance's mark are its own, which may.
func ofProcesses(t *testing.T, text, own string) (found []string) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(dirs) == 0 {
		t.Fatal(dirs, err)
	}
	for _, dir := range dirs {
		args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		env, _ := os.ReadFile(filepath.Join(dir, "environ")) // one that has ended has none
		if bytes.Contains(args, []byte(text)) {
			found = append(found, dir+"/cmdline")
		}
		if bytes.Contains(env, []byte(text)) && !bytes.Contains(env, []byte(own)) {
			found = append(found, dir+"/environ")
		}
	}
	return found
}
