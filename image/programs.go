package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"capsule/internal/run"
)

// compileMax bounds one run of the Go compiler, which downloads modules too.
const compileMax = 20 * time.Minute

// containerdTags leave out what no capsule uses: Kubernetes' interface, other
// snapshotters, tracing.
const containerdTags = "no_cri no_btrfs no_zfs no_devmapper no_aufs no_tracing"

// ownTags leave out what needs the C library, and gRPC's traces: with those the
// linker keeps every method of every type, 3 MB in each microVM's memory.
const ownTags = "netgo osusergo grpcnotrace"

const (
	containerdModule = "github.com/containerd/containerd/v2"
	runcModule       = "github.com/opencontainers/runc"
)

// rootPrograms are our own programs in the root; the first stage is in the initrd,
// and the guest's agent in the initramfs of microVMs.
var rootPrograms = []string{"capsuled", "capsule-log", "capsule-runc"}

const (
	firstStage = "capsule-boot"
	guestAgent = "capsule-guest"
)

// goPrograms compiles all Go programs. The compiler has its own cache, so this is
// not a cached step.
func (b *builder) goPrograms() error {
	start := time.Now()
	dir := filepath.Join(b.work, "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, compile := range []func(dir string) error{b.compileOwn, b.compileContainerd, b.compileRunc} {
		if err := compile(dir); err != nil {
			return err
		}
	}
	report("go programs", time.Since(start), sizeOf([]string{dir}), "")
	return nil
}

func (b *builder) compileOwn(dir string) error {
	return b.compileOurs(dir, append([]string{firstStage, guestAgent}, rootPrograms...)...)
}

// compileOurs compiles programs of cmd, which tell the version.
func (b *builder) compileOurs(dir string, names ...string) error {
	flags := fmt.Sprintf("-s -w -buildid= -X capsule/internal/version.Version=%s -X capsule/internal/version.BuildUnix=%d",
		b.version, b.buildUnix)
	args := []string{"-tags", ownTags, "-ldflags", flags, "-o", dir + "/"}
	for _, name := range names {
		args = append(args, "./cmd/"+name)
	}
	return b.compile([]string{"CGO_ENABLED=0"}, b.repo, args...)
}

func (b *builder) compileContainerd(dir string) error {
	version, err := run.Output(b.ctx, quick, "go", "list", "-m", "-f", "{{.Version}}", containerdModule)
	if err != nil {
		return err
	}
	flags := fmt.Sprintf("-s -w -buildid= -X %s/version.Version=%s", containerdModule, strings.TrimSpace(string(version)))
	return b.compile([]string{"CGO_ENABLED=0"}, b.repo, "-tags", containerdTags, "-ldflags", flags, "-o", dir+"/",
		containerdModule+"/cmd/containerd", containerdModule+"/cmd/containerd-shim-runc-v2")
}

// compileRunc links runc, whose first steps are C, statically with the C library
// and libseccomp of the packages.
func (b *builder) compileRunc(dir string) error {
	sysroot := "--sysroot=" + b.debian("")
	env := []string{
		"CGO_ENABLED=1", "CC=gcc", "CGO_CFLAGS=-O2 " + sysroot, "CGO_LDFLAGS=" + sysroot,
		"PKG_CONFIG_LIBDIR=" + b.debian("usr/lib/x86_64-linux-gnu/pkgconfig"),
		"PKG_CONFIG_SYSROOT_DIR=" + b.debian(""),
	}
	flags := "-s -w -buildid= -extldflags '-static " + sysroot + "'"
	return b.compile(env, filepath.Join(b.repo, "image", "runc"), "-tags", "seccomp netgo osusergo",
		"-ldflags", flags, "-o", dir+"/", runcModule)
}

// compile runs go build in a folder, the same for all: no paths, no clock. The
// linker is told to write no build identifier, which would hold a hash of paths.
func (b *builder) compile(env []string, dir string, args ...string) error {
	argv := append([]string{"GOFLAGS=", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1"}, env...)
	argv = append(argv, "go", "build", "-C", dir, "-trimpath", "-buildvcs=false")
	_, err := run.Output(b.ctx, compileMax, "env", append(argv, args...)...)
	return err
}
