package pid1

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The machine's control groups, below groupRoot: process 1 and its programs, the
// daemon with the lvm commands that it runs, containerd, shims with loggers. Workloads
// live in their own groups in groupApps.
const (
	groupRoot       = "/sys/fs/cgroup"
	groupAll        = "capsule"
	groupInit       = "capsule/init"
	groupServe      = "capsule/serve"
	groupContainerd = "capsule/containerd"
	groupShims      = "capsule/shims"
	groupApps       = "capsule/apps"
)

const controllers = "+cpu +memory +pids +io +cpuset"

// makeGroups creates the groups, hands the controllers down to the workloads', and
// moves process 1 into its own.
func makeGroups() error {
	var errs []error
	for _, g := range []string{groupInit, groupServe, groupContainerd, groupShims, groupApps} {
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
	dir := filepath.Join(groupRoot, group)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("kill group %q: %w", group, err)
	}
	events, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	for deadline := time.Now().Add(limit); ; {
		buf := make([]byte, 256)
		n, _ := events.ReadAt(buf, 0) // what can't be read isn't empty
		if strings.Contains(string(buf[:n]), "populated 0") {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("kill group %q: processes are left after %v", group, limit)
		}
		fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		_, _ = unix.Poll(fds, int(left.Milliseconds())+1) // a signal just looks again
	}
}
