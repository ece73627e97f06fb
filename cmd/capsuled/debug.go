package main

import (
	"context"
	"log/slog"
	"path/filepath"

	"golang.org/x/sys/unix"

	"capsule/internal/cgroup"
	"capsule/internal/debug"
	"capsule/internal/lvm"
	"capsule/internal/workload"
)

// newDebug runs what an operator debugs the machine with.
func newDebug() func(context.Context, workload.Exec) (int, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		slog.Error("read the size of the memory", "error", err)
	}
	return debug.New(debug.Options{
		Group: cgroup.Group(filepath.Join(groups, "debug")), MemoryTotal: info.Totalram * uint64(info.Unit),
		Env: []string{"LVM_SYSTEM_DIR=" + lvm.ConfigDir, "LVM_SUPPRESS_FD_WARNINGS=1"},
	}).Run
}
