package imagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"
)

// containerdLimit bounds the start and the end of a test's containerd.
const containerdLimit = 60 * time.Second

// Namespace that the product keeps its images and containers in.
const Namespace = "capsule"

// containerdConfig is the part of the machine's configuration that matters for
// images; the arguments are root and state folder and the socket.
const containerdConfig = `version = 3
root = %q
state = %q
[grpc]
address = %q
[ttrpc]
address = %q
[plugins."io.containerd.snapshotter.v1.erofs"]
default_size = "64MiB"
[plugins."io.containerd.differ.v1.erofs"]
mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]
[plugins."io.containerd.service.v1.diff-service"]
default = ["erofs", "walking"]
`

// Containerd starts a containerd of its own folders that ends with the test,
// and returns a client in the product's namespace. It needs root and an
// mkfs.erofs of 1.8 or later, and skips the test without them, unless
// CAPSULE_TEST_MACHINE is set: on our own machine all is there.
//
// Programs come from PATH there. On a developer's machine containerd is built
// from go.mod, and mkfs.erofs is looked for in $CAPSULE_TEST_MKFS_EROFS, in
// PATH and in trees of Debian packages under build/.
func Containerd(t testing.TB) *client.Client {
	t.Helper()
	c, _ := ContainerdAt(t, t.TempDir())
	return c
}

// ContainerdAt does so with its root in a given folder, and returns the root.
func ContainerdAt(t testing.TB, dir string) (*client.Client, string) {
	t.Helper()
	c, root, _ := containerd(t, dir)
	return c, root
}

// Restartable starts one as ContainerdAt does. Restart kills it by force, calls a
// function and returns when the next one answers.
func Restartable(t testing.TB, dir string) (c *client.Client, restart func(meanwhile func())) {
	t.Helper()
	c, _, d := containerd(t, dir)
	return c, func(meanwhile func()) {
		t.Helper()
		d.end(syscall.SIGKILL)
		meanwhile()
		d.start(t)
		serving(t, c)
	}
}

func containerd(t testing.TB, dir string) (*client.Client, string, *daemon) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "not root")
	}
	mkfs, err := mkfsErofs()
	if err != nil {
		skip(t, err.Error())
	}
	program, err := containerdProgram()
	if err != nil {
		t.Fatalf("imagetest: %v", err)
	}
	// Short: the path of a socket has at most 107 bytes.
	run, err := os.MkdirTemp("", "ctrd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	root, socket := filepath.Join(dir, "containerd"), filepath.Join(run, "c.sock")
	config := filepath.Join(run, "config.toml")
	text := fmt.Sprintf(containerdConfig, root, filepath.Join(run, "state"), socket, socket+".ttrpc")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// Our own code runs mkfs.erofs too.
	t.Setenv("PATH", filepath.Dir(mkfs)+":"+filepath.Dir(program)+":"+os.Getenv("PATH"))
	d := startDaemon(t, program, config)
	c, err := client.New(socket, client.WithDefaultNamespace(Namespace), client.WithTimeout(containerdLimit))
	if err != nil {
		t.Fatalf("imagetest: containerd: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	serving(t, c)
	return c, root, d
}

func serving(t testing.TB, c *client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), containerdLimit)
	defer cancel()
	if ok, err := c.IsServing(ctx); !ok || err != nil {
		t.Fatalf("imagetest: containerd doesn't answer: %v", err)
	}
}

// daemon is a containerd that runs.
type daemon struct {
	program, config string
	log             Output
	process         *os.Process
	ended           chan struct{}
}

// startDaemon runs containerd until the test ends; its log is shown when it failed.
func startDaemon(t testing.TB, program, config string) *daemon {
	t.Helper()
	d := &daemon{program: program, config: config}
	d.start(t)
	t.Cleanup(func() {
		d.end(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("containerd:\n%s", d.log.String())
		}
	})
	return d
}

func (d *daemon) start(t testing.TB) {
	t.Helper()
	cmd := exec.Command(d.program, "--config", d.config, "--log-level", "info")
	cmd.Stdout, cmd.Stderr = &d.log, &d.log
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Dir(d.config))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		// The death signal is sent when the thread ends that started it.
		runtime.LockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed, or ended by us
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("imagetest: containerd: %v", err)
	}
	d.process, d.ended = cmd.Process, ended
}

// end sends the signal and returns when it is gone.
func (d *daemon) end(signal syscall.Signal) {
	_ = d.process.Signal(signal)
	timer := time.AfterFunc(containerdLimit, func() { _ = d.process.Kill() })
	<-d.ended
	timer.Stop()
}

// skip leaves a test that this machine can't run; our own machine can.
func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CAPSULE_TEST_MACHINE") != "" {
		t.Fatalf("imagetest: no containerd for the test: %s", why)
	}
	t.Skipf("SKIPPED, needs containerd with erofs: %s", why)
}

// containerdTags leave out what the machine doesn't have.
const containerdTags = "no_cri no_btrfs no_zfs no_devmapper no_aufs"

// containerdProgram finds containerd, or builds it from go.mod.
var containerdProgram = sync.OnceValues(func() (string, error) {
	if path := prebuilt("CAPSULE_TEST_CONTAINERD", "containerd"); path != "" {
		return path, nil
	}
	if os.Getenv("CAPSULE_TEST_MACHINE") != "" {
		return exec.LookPath("containerd")
	}
	root, err := repository()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "build", "test-tools")
	unlock, err := lockDir(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	path := filepath.Join(dir, "containerd")
	for _, name := range []string{"containerd", "containerd-shim-runc-v2"} {
		// A second build is quick and replaces nothing that runs.
		_, err := goBuild(filepath.Join(dir, name), "-tags", containerdTags, "github.com/containerd/containerd/v2/cmd/"+name)
		if err != nil {
			return "", fmt.Errorf("build %s: %w", name, err)
		}
	}
	return path, nil
})

// mkfsErofs finds a mkfs.erofs that turns a tar into an image.
var mkfsErofs = sync.OnceValues(func() (string, error) {
	candidates := []string{os.Getenv("CAPSULE_TEST_MKFS_EROFS")}
	if path, err := exec.LookPath("mkfs.erofs"); err == nil {
		candidates = append(candidates, path)
	}
	for _, path := range candidates {
		if path != "" && readsTar(path) {
			return path, nil
		}
	}
	root, err := repository()
	if err == nil {
		var path string
		if path, err = borrow(root); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no mkfs.erofs of 1.8 or later, make image gives one, or set CAPSULE_TEST_MKFS_EROFS: %w", err)
})

// readsTar says that a mkfs.erofs is new enough.
func readsTar(path string) bool {
	out, _ := exec.Command(path, "--help").CombinedOutput()
	return bytes.Contains(out, []byte("--tar="))
}

// borrow copies mkfs.erofs and its libraries out of a tree of Debian packages
// that the image builder made, which may be replaced at any time.
func borrow(root string) (string, error) {
	dir := filepath.Join(root, "build", "test-tools", "erofs")
	unlock, err := lockDir(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	script := filepath.Join(dir, "mkfs.erofs")
	if readsTar(script) {
		return script, nil
	}
	trees, _ := filepath.Glob(filepath.Join(root, "build", "*", "usr", "bin", "mkfs.erofs"))
	more, _ := filepath.Glob(filepath.Join(root, "build", "*", "*", "usr", "bin", "mkfs.erofs"))
	if len(trees)+len(more) == 0 {
		return "", errors.New("no tree with mkfs.erofs under build")
	}
	err = nil
	for _, program := range append(trees, more...) {
		e := borrowFrom(program, dir, script)
		if e == nil && readsTar(script) {
			return script, nil
		}
		err = errors.Join(err, e)
	}
	return "", err
}

// borrowFrom copies one program with its loader and libraries.
func borrowFrom(program, dir, script string) error {
	tree := filepath.Dir(filepath.Dir(filepath.Dir(program)))
	loaders, _ := filepath.Glob(filepath.Join(tree, "usr", "lib*", "ld-linux-*.so.*"))
	libraries, _ := filepath.Glob(filepath.Join(tree, "usr", "lib", "*-linux-gnu"))
	if len(loaders) == 0 || len(libraries) == 0 {
		return fmt.Errorf("%s has no loader", tree)
	}
	list, err := exec.Command(loaders[0], "--library-path", libraries[0], "--list", program).Output()
	if err != nil {
		return fmt.Errorf("libraries of %s: %w", program, err)
	}
	files := map[string]string{"mkfs": program, "loader": loaders[0]}
	for line := range strings.Lines(string(list)) {
		if name, path, ok := strings.Cut(line, " => "); ok && !strings.Contains(name, "/") {
			path, _, _ = strings.Cut(path, " (")
			files[strings.TrimSpace(name)] = path
		}
	}
	for name, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		// A program that runs can't be written: replace it.
		if err := replace(filepath.Join(dir, name), data); err != nil {
			return err
		}
	}
	return replace(script, fmt.Appendf(nil, "#!/bin/sh\nexec %q --library-path %q %q \"$@\"\n",
		filepath.Join(dir, "loader"), dir, filepath.Join(dir, "mkfs")))
}

// replace writes a program under a new name, then renames it.
func replace(name string, data []byte) error {
	if err := os.WriteFile(name+".new", data, 0o755); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// lockDir makes a folder and keeps other test processes out of it.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// repository is the folder of go.mod above the test.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod above the test")
		}
		dir = parent
	}
}
