package container

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"capsule/internal/cgroup"
	"capsule/internal/drivertest"
	"capsule/internal/image"
	"capsule/internal/imagetest"
	"capsule/internal/instance"
	"capsule/internal/lvm/lvmtest"
	"capsule/internal/workload"
)

// machine skips a test that needs cgroup version 2, as our machine has it.
func machine(t *testing.T) {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(cgroup.Root, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		if os.Getenv("CAPSULE_TEST_MACHINE") != "" {
			t.Fatalf("no cgroup version 2 at %s", cgroup.Root)
		}
		t.Skip("SKIPPED, needs cgroup version 2: run it with test/vmexec")
	}
	for _, program := range []string{"containerd", "containerd-shim-runc-v2", "runc", "mkfs.erofs"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED, %v: run it with test/vmexec", err)
		}
	}
}

// plain reaches every registry without TLS.
type plain struct{}

func (plain) Lookup(string) (image.RegistryAccess, error) {
	return image.RegistryAccess{PlainHTTP: true}, nil
}

// scratch is a folder for containerd on a disk: overlay takes no tmpfs with
// all its attributes, and images want room.
func scratch(t *testing.T) string {
	t.Helper()
	if os.Getenv("CAPSULE_TEST_MACHINE") == "" {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/perm", "test")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// logger is the machine's own, or the one at CAPSULE_TEST_LOGGER.
func logger(t *testing.T) string {
	t.Helper()
	path := os.Getenv("CAPSULE_TEST_LOGGER")
	if path == "" {
		return ""
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "capsule-log")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func netns(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "netns")
	if err := drivertest.MakeNetNS(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

// folder is a volume of containers.
func folder(t *testing.T, files map[string]string) (m workload.Mount, read func(string) string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return workload.Mount{Volume: "v", Source: dir}, func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
}

// pool is what volumes are made in, on the disk of a test's machine.
func pool() func(*testing.T) {
	if os.Getenv("CAPSULE_TEST_MACHINE") == "" {
		return nil
	}
	return func(t *testing.T) { lvmtest.Pool(t, 1<<30) }
}

func TestDriver(t *testing.T) {
	machine(t)
	dir := scratch(t)
	runtime := newDaemon(t, dir)
	client := runtime.client(t)
	images := image.Open(client, plain{})
	registry := imagetest.Registry(t, imagetest.RegistryOptions{})
	etc := t.TempDir()
	for name, text := range map[string]string{"hosts": "127.0.0.1 localhost\n", "resolv.conf": "nameserver 10.0.0.1\n"} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fifos, secrets, logs := filepath.Join(t.TempDir(), "exec"), t.TempDir(), t.TempDir()
	ns, log, program := netns(t, etc), logger(t), runcProgram(t)
	drivertest.Run(t, drivertest.Env{
		Driver: func() workload.Driver {
			return New(client, Options{FIFODir: fifos, Logger: log, Runc: program, SecretDir: secrets})
		},
		Image: func(t *testing.T, i imagetest.Image) image.Image {
			t.Helper()
			img, err := images.Pull(t.Context(), registry.Push(t, "test", i.Build().Manifest.Digest.Encoded()[:12], i), nil)
			if err != nil {
				t.Fatal(err)
			}
			return img
		},
		Network: func(name string) workload.Network {
			return workload.Network{
				Mode: "none", NetNS: ns, Hostname: name,
				ResolvConf: filepath.Join(etc, "resolv.conf"), Hosts: filepath.Join(etc, "hosts"),
			}
		},
		Neighbour: func(t *testing.T, name string) *drivertest.Neighbour {
			return drivertest.NewNeighbour(t, t.TempDir(), name)
		},
		CountsIO:       true,
		Kind:           instance.Container,
		Volume:         folder,
		Pool:           pool(),
		Content:        images,
		Folders:        true,
		Filtered:       true,
		LogRoot:        logs,
		Disks:          []string{dir, logs},
		Memory:         []string{secrets, filepath.Dir(runtime.config)},
		RestartRuntime: func(t *testing.T, meanwhile func()) { runtime.restart(t, client, meanwhile) },
		Leftovers: func() []string {
			left, _ := filepath.Glob(filepath.Join(fifos, "*"))
			return left
		},
	})
}
