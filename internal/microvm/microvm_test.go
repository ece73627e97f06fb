package microvm

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"capsule/internal/drivertest"
	"capsule/internal/image"
	"capsule/internal/imagetest"
	"capsule/internal/instance"
	"capsule/internal/jail"
	"capsule/internal/nettest"
	"capsule/internal/workload"
)

func TestMain(m *testing.M) {
	jail.Stage()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if order := os.Getenv(victimVariable); order != "" {
		victim(order)
	}
	nettest.Main(m)
}

// repository is the tree that the tests are of.
const repository = "../.."

// pieces of a machine as the build leaves them.
var (
	testRoot      = built("build/work/root")
	testKernel    = built("build/guest/vmlinux")
	testInitramfs = built("build/guest/initramfs")
)

func built(path string) string {
	path, err := filepath.Abs(filepath.Join(repository, path))
	if err != nil {
		panic(err)
	}
	return path
}

// needGuest leaves out a test that starts guests, which takes minutes, unless
// CAPSULE_TEST_GUEST asks for it.
func needGuest(t testing.TB) {
	t.Helper()
	if os.Getenv("CAPSULE_TEST_GUEST") == "" {
		t.Skip("SKIPPED, starts microVMs: run it with CAPSULE_TEST_GUEST=1")
	}
	if os.Geteuid() != 0 {
		t.Fatal("no guest for the test: it needs root")
	}
	for _, path := range []string{testKernel, testInitramfs, filepath.Join(testRoot, qemuProgram), "/dev/net/tun"} {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("no guest for the test; run make image: %v", err)
		}
	}
}

// world is a capsule as the driver sees it.
type world struct {
	client   *containerd.Client
	images   *image.Store
	registry *imagetest.RegistryServer
	base     image.Image // of the payload
	opts     Options
	root     string // of containerd
	logs     string // folder of log folders
	restart  func(meanwhile func())
	driver   *Driver
}

// newWorld has no instances, which go with the test.
func newWorld(t testing.TB) *world {
	t.Helper()
	needGuest(t)
	w := &world{}
	w.root, w.logs = t.TempDir(), t.TempDir()
	w.client, w.restart = imagetest.Restartable(t, w.root)
	w.images = image.Open(w.client, plain{})
	w.registry = imagetest.Registry(t, imagetest.RegistryOptions{})
	run, err := os.MkdirTemp("/run", "vm") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		killAll(t, run)
		_ = os.RemoveAll(run)
	})
	w.opts = Options{
		Dir: t.TempDir(), RunDir: run, Cgroup: "-", LogCgroup: "-",
		Root: testRoot, Kernel: testKernel, Initramfs: testInitramfs,
		Logger: logger(t), Channel: Port, Emulated: "a test",
	}
	w.fresh()
	t.Cleanup(func() { w.driver.Close() })
	return w
}

// killAll ends machines that a failed test left.
func killAll(t testing.TB, run string) {
	locks, _ := filepath.Glob(filepath.Join(run, "*", lockFile))
	for _, lock := range locks {
		if p, err := jail.Find(lock); err == nil && p != nil {
			t.Errorf("a machine is left: %s", lock)
			_ = p.Kill()
			<-p.Done()
		}
	}
}

// fresh is a new daemon's driver over the same world.
func (w *world) fresh() *Driver {
	if w.driver != nil {
		w.driver.Close()
	}
	w.driver = New(w.client, w.opts)
	return w.driver
}

func (w *world) image(t testing.TB, i imagetest.Image) image.Image {
	t.Helper()
	img, err := w.images.Pull(t.Context(), w.registry.Push(t, "test", i.Build().Manifest.Digest.Encoded()[:12], i), nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// plain reaches every registry without TLS.
type plain struct{}

func (plain) Lookup(string) (image.RegistryAccess, error) {
	return image.RegistryAccess{PlainHTTP: true}, nil
}

// logger builds the program that writes logs.
func logger(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "capsule-log")
	if err := os.WriteFile(path, program(t, "capsule/cmd/capsule-log"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// volume is a disk with files on it, where only its folder data is shown.
func volume(t *testing.T, files map[string]string) (m workload.Mount, read func(string) string) {
	t.Helper()
	content := t.TempDir()
	if err := os.Mkdir(filepath.Join(content, shown), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(content, shown, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	disk := filepath.Join(t.TempDir(), "volume.img")
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", content, disk, "16M").CombinedOutput(); err != nil {
		t.Fatalf("make a volume: %v: %s", err, out)
	}
	return workload.Mount{Volume: "v", Source: disk, Folder: shown}, func(name string) string {
		out, err := exec.Command("debugfs", "-R", "cat /"+shown+"/"+name, disk).Output()
		if err != nil {
			t.Errorf("read a volume: %v", err)
		}
		return string(out)
	}
}

// etc is a folder with the files that name other machines.
func etc(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"hosts": "127.0.0.1 localhost\n", "resolv.conf": "nameserver 10.0.0.1\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// shown is the folder of a volume's disk that instances see.
const shown = "data"

func TestDriver(t *testing.T) {
	w := newWorld(t)
	dir := etc(t)
	ns := filepath.Join(dir, "netns")
	if err := drivertest.MakeNetNS(ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(ns, unix.MNT_DETACH) })
	drivertest.Run(t, drivertest.Env{
		Driver: func() workload.Driver { return w.fresh() },
		Image:  func(t *testing.T, i imagetest.Image) image.Image { return w.image(t, i) },
		Network: func(name string) workload.Network {
			return workload.Network{
				Mode: "none", NetNS: ns, Hostname: name,
				ResolvConf: filepath.Join(dir, "resolv.conf"), Hosts: filepath.Join(dir, "hosts"),
			}
		},
		Neighbour: func(t *testing.T, name string) *drivertest.Neighbour {
			return drivertest.NewNeighbour(t, t.TempDir(), name)
		},
		Kind:           instance.MicroVM,
		Volume:         volume,
		LogRoot:        w.logs,
		Disks:          []string{w.root, w.logs, w.opts.Dir},
		Memory:         []string{w.opts.RunDir},
		RestartRuntime: func(_ *testing.T, meanwhile func()) { w.restart(meanwhile) },
		Leftovers: func() []string {
			left, _ := filepath.Glob(filepath.Join(w.opts.RunDir, "*", "*.new"))
			return left
		},
	})
	if left, _ := filepath.Glob(filepath.Join(w.opts.RunDir, "*")); len(left) > 0 {
		t.Errorf("run folders are left: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(w.opts.Dir, "*")); len(left) > 0 {
		t.Errorf("disks are left: %v", left)
	}
}
