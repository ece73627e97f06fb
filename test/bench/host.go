package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/contexts"
	"capsule/internal/identity"
	"capsule/internal/run"
)

// A host is a capsule without a machine of its own: the image's root with its
// containerd and runc, and this tree's capsuled, as processes of this computer. They
// live in namespaces and in a control group of their own, and end with the host's
// process 1, which is this program again: it measures from there (hostMain).
type host struct {
	Root    string           // of the image
	Perm    string           // folder that is its /perm
	Share   string           // folder with the programs of this tree, the image and logs
	Context contexts.Context // an admin's
}

const (
	compileHostMax = 20 * time.Minute
	keysLife       = 24 * time.Hour
	apiAddress     = "127.0.0.1:50000"
	archiveFile    = "web.tar"
)

// newHost makes all that a host needs.
func (b *bench) newHost(ctx context.Context) (*host, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("a capsule's processes on this computer need root")
	}
	roots, err := filepath.Glob(filepath.Join(b.repository, "build/root-*.erofs"))
	if err != nil || len(roots) == 0 {
		return nil, errors.New("no build/root-*.erofs; run make image")
	}
	h := &host{Root: roots[len(roots)-1], Perm: filepath.Join(b.dir, "perm"), Share: filepath.Join(b.dir, "share")}
	for _, dir := range []string{h.Perm, h.Share} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := h.letIn(); err != nil {
		return nil, err
	}
	for _, program := range []string{"./cmd/capsuled", "./test/bench"} {
		if _, err := run.Output(ctx, compileHostMax, "env", "CGO_ENABLED=0", "go", "-C", b.repository, "build", "-trimpath", "-buildvcs=false",
			"-tags", "netgo osusergo grpcnotrace", "-ldflags", "-s -w", "-o", h.Share+"/", program); err != nil {
			return nil, err
		}
	}
	archive, err := os.ReadFile(filepath.Join(b.repository, "build/example", archiveFile))
	if err != nil {
		return nil, fmt.Errorf("%w; run make example", err)
	}
	return h, os.WriteFile(filepath.Join(h.Share, archiveFile), archive, 0o600)
}

// letIn gives the host an identity, and us an admin's keys.
func (h *host) letIn() error {
	ca, err := identity.NewCA("capsule bench")
	if err != nil {
		return err
	}
	pair, err := ca.IssueOperator("bench", capsulev1.Role_ROLE_ADMIN, keysLife)
	if err != nil {
		return err
	}
	text, err := ca.SeedPEM(pair.CertPEM)
	if err != nil {
		return err
	}
	seed := filepath.Join(h.Share, "seed.pem")
	if err := os.WriteFile(seed, text, 0o600); err != nil {
		return err
	}
	h.Context = contexts.Context{Name: "bench", Host: apiAddress, CA: string(ca.CertPEM()), Certificate: string(pair.CertPEM), Key: string(pair.KeyPEM)}
	_, err = identity.Load(filepath.Join(h.Perm, "identity"), seed)
	return err
}

// run has the host's process 1 measure, and waits for it.
func (h *host) run(ctx context.Context) error {
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	group, remove, err := newGroup()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, scaleMax)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(h.Share, "bench"), hostArg)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(string(text)), os.Stdout, os.Stderr
	ended := make(chan error)
	go func() {
		// This thread gets a place among control groups that no other may have: it
		// ends with the host, and the host would end with it.
		runtime.LockOSThread()
		ended <- group.run(cmd)
	}()
	return errors.Join(<-ended, remove())
}

// group is the folder of a control group, version 2, that is the host's root.
type group string

// newGroup makes one.
func newGroup() (g group, remove func() error, err error) {
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", nil, err
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			g = group(filepath.Join(fields[1], fmt.Sprintf("capsule-bench-%d", os.Getpid())))
			return g, g.remove, os.MkdirAll(g.first(), 0o755)
		}
	}
	return "", nil, errors.New("this computer has no control groups, version 2")
}

// first is where the host's process 1 starts: a group with processes hands no
// controllers down.
func (g group) first() string { return filepath.Join(string(g), "first") }

// run runs a command in namespaces of its own, with the group as the root of what it
// sees of groups: that is the group of whoever makes the namespace.
func (g group) run(cmd *exec.Cmd) error {
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	_, back, _ := strings.Cut("\n"+string(before), "\n0::")
	back, _, _ = strings.Cut(back, "\n")
	first, err := os.Open(g.first())
	if err != nil {
		return err
	}
	defer first.Close()
	enter := func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Appendf(nil, "%d", os.Getpid()), 0)
	}
	if err := enter(string(g)); err != nil {
		return err
	}
	err = unix.Unshare(unix.CLONE_NEWCGROUP)
	if err := errors.Join(err, enter(filepath.Join(filepath.Dir(string(g)), back))); err != nil {
		return fmt.Errorf("make a namespace of control groups: %w", err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		UseCgroupFD: true, CgroupFD: int(first.Fd()), Pdeathsig: unix.SIGKILL,
	}
	return cmd.Run()
}

// remove takes the group away with those below it, once their processes are gone.
func (g group) remove() error {
	var dirs []string
	err := filepath.WalkDir(string(g), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		err = errors.Join(err, os.Remove(dirs[i]))
	}
	return err
}
