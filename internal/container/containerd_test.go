package container

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"capsule/internal/imagetest"
)

// config is what of the machine's own matters here; the arguments are root and
// state folder, the socket and that of ttrpc.
const config = `version = 3
root = %q
state = %q
[grpc]
address = %q
[ttrpc]
address = %q
[plugins."io.containerd.differ.v1.erofs"]
mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]
[plugins."io.containerd.service.v1.diff-service"]
default = ["erofs", "walking"]
`

// daemon is a containerd that can be killed and started again.
type daemon struct {
	config, socket string
	cmd            *exec.Cmd
	log            imagetest.Output
}

// newDaemon starts containerd with its root in dir.
func newDaemon(t *testing.T, dir string) *daemon {
	t.Helper()
	run, err := os.MkdirTemp("/run", "ctrd")
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{config: filepath.Join(run, "config.toml"), socket: filepath.Join(run, "c.sock")}
	text := fmt.Sprintf(config, filepath.Join(dir, "containerd"), filepath.Join(run, "state"), d.socket, d.socket+".ttrpc")
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d.start(t)
	t.Cleanup(func() {
		d.end(t, syscall.SIGTERM)
		if t.Failed() {
			t.Logf("containerd:\n%s", d.log.String())
		}
	})
	return d
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	d.cmd = exec.Command("containerd", "--config", d.config, "--log-level", "info")
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Dir(d.config))
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) end(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(signal); err != nil {
		t.Error(err)
	}
	_ = d.cmd.Wait()
}

func (d *daemon) client(t *testing.T) *containerd.Client {
	t.Helper()
	c, err := containerd.New(d.socket, containerd.WithDefaultNamespace(imagetest.Namespace), containerd.WithTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// restart kills containerd and returns when the new one answers.
func (d *daemon) restart(t *testing.T, c *containerd.Client, meanwhile func()) {
	t.Helper()
	d.end(t, syscall.SIGKILL)
	meanwhile()
	d.start(t)
	if ok, err := c.IsServing(t.Context()); err != nil || !ok {
		t.Fatalf("containerd does not come back: %v", err)
	}
}
