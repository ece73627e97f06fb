package pid1

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

const (
	containerdConfig = "/run/capsule/containerd.toml"
	serviceScore     = -500 // for both: workloads go first when memory runs out
)

// ContainerdTOML is containerd's configuration. Layers are kept as EROFS files that containers mount and
// microVMs get as they are; writable layers are folders in /perm.
const ContainerdTOML = `version = 4
root = "/perm/containerd"
state = "/run/containerd"
oom_score = -500
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.native",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.nri.v1.nri",
]

[plugins."io.containerd.server.v1.grpc"]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.differ.v1.erofs"]
  mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]

[plugins."io.containerd.service.v1.diff-service"]
  default = ["erofs", "walking"]

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "erofs"
  differ = "erofs"
`

// startServices starts containerd (not in recovery mode) and serve side by side;
// serve waits for containerd by itself.
func (m *machine) startServices(ctx context.Context) {
	if m.reason == "" {
		m.containerd = &service{
			name:  "containerd",
			argv:  []string{"/usr/bin/containerd", "--config", containerdConfig},
			env:   containerdEnv(),
			group: groupContainerd,
			score: serviceScore,
		}
		m.step("containerd", func() error {
			if err := os.WriteFile(containerdConfig, []byte(ContainerdTOML), 0o644); err != nil {
				return err
			}
			if err := os.MkdirAll(runtimeDir, 0o700); err != nil {
				return err
			}
			return m.start(ctx, m.containerd)
		})
	}
	m.serve = &service{
		name:  "capsuled",
		argv:  []string{"/usr/bin/capsuled", "serve"},
		env:   m.serveEnv(),
		group: groupServe,
		score: serviceScore,
		clear: true,
		runs:  m.runs,
	}
	m.step("serve", func() error { return m.start(ctx, m.serve) })
}

// runtimeDir is in memory. What runc is to start, with its environment and so with
// secrets, goes to it by files that its shim makes there, and not where TMPDIR is.
const runtimeDir = "/run/capsule/runtime"

// containerdEnv is also the shim's.
func containerdEnv() []string {
	return []string{"TMPDIR=" + permDir + "/tmp", "XDG_RUNTIME_DIR=" + runtimeDir}
}

func (m *machine) serveEnv() []string {
	env := []string{
		"NOTIFY_SOCKET=" + noticeSocket,
		// From when on a tentative system's time counts, since the kernel's start.
		"CAPSULE_BEGUN=" + uptime().String(),
	}
	if m.reason == "" {
		return append(env, "CAPSULE_MODE=normal", "TMPDIR="+permDir+"/tmp")
	}
	if m.installer {
		return append(env, "CAPSULE_MODE=installer", "CAPSULE_MODE_REASON="+m.reason)
	}
	return append(env, "CAPSULE_MODE=recovery", "CAPSULE_MODE_REASON="+m.reason)
}

// start runs a service in a life of its own: the shutdown ends it, in its order.
func (m *machine) start(ctx context.Context, s *service) error {
	s.log, s.kids = m.log, &m.kids
	return s.run(context.WithoutCancel(ctx))
}

// reapOrphans collects orphans for as long as the machine runs.
func (m *machine) reapOrphans(ctx context.Context) {
	ended := make(chan os.Signal, 1) // one pending wake-up is enough: a reap takes all
	signal.Notify(ended, unix.SIGCHLD)
	m.kids.adopt()
	for {
		m.kids.reap()
		select {
		case <-ctx.Done():
			return
		case <-ended:
		}
	}
}

// finishStorage does what nobody waits for: it activates the pool and uses a disk
// that has grown. Orphans are reaped after it, since it runs programs itself.
func (m *machine) finishStorage(ctx context.Context, created bool) {
	if m.reason == "" {
		whole, err := m.findDisks()
		if err != nil {
			m.log.important("disks of the pool: %v", err)
		}
		if !whole {
			m.log.important("a disk of the pool is missing")
		}
		if err := m.activatePool(ctx); err != nil {
			m.log.important("volumes: %v", err)
		}
		if !created && whole {
			if err := m.growStorage(ctx); err != nil {
				m.log.important("grow to the disk's size: %v", err)
			}
		}
	}
	m.reapOrphans(ctx)
}

const noticeSocket = "/run/capsule/notify"

// String is for errors in logs.
func (k shutdownKind) String() string {
	if k == powerOff {
		return "power off"
	}
	return "restart"
}
