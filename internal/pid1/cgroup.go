package pid1

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"capsule/internal/cgroup"
)

// The machine's control groups, below groupRoot: process 1 and its programs, the
// daemon with the lvm commands that it runs, containerd, shims with loggers. Workloads
// live in their own groups in groupApps, sessions of "capsule debug" in groupDebug.
const (
	groupRoot       = "/sys/fs/cgroup"
	groupAll        = "capsule"
	groupInit       = "capsule/init"
	groupServe      = "capsule/serve"
	groupContainerd = "capsule/containerd"
	groupShims      = "capsule/shims"
	groupApps       = "capsule/apps"
	groupDebug      = "capsule/debug"
)

const controllers = "+cpu +memory +pids +io +cpuset"

// makeGroups creates the groups, hands the controllers down to the workloads', and
// moves process 1 into its own.
func makeGroups() error {
	var errs []error
	for _, g := range []string{groupInit, groupServe, groupContainerd, groupShims, groupApps, groupDebug} {
		errs = append(errs, os.MkdirAll(filepath.Join(groupRoot, g), 0o755))
	}
	for _, g := range []string{"", groupAll, groupApps} {
		if err := os.WriteFile(filepath.Join(groupRoot, g, "cgroup.subtree_control"), []byte(controllers), 0); err != nil {
			errs = append(errs, fmt.Errorf("hand controllers down: %w", err))
		}
	}
	memory, err := memoryBytes()
	errs = append(errs, err)
	if err == nil {
		for _, s := range shares(memory) {
			errs = append(errs, s.write())
		}
	}
	errs = append(errs, setting{filepath.Join(groupRoot, groupInit, "cgroup.procs"), strconv.Itoa(os.Getpid())}.write())
	return errors.Join(errs...)
}

// killGroup ends all processes of a group and those below it, and waits until the
// kernel says that it's empty.
func killGroup(group string, limit time.Duration) error {
	return cgroup.Group(filepath.Join(groupRoot, group)).End(limit)
}
