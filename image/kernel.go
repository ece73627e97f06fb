package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"capsule/internal/run"
)

const (
	kernelSource     = "linux-source-6.12" // package, and name of its archive
	guestKernelStep  = "guest kernel"
	guestKernelMax   = time.Hour // one run of make; two cores take four minutes, slow ones fifteen
	kernelSourceMax  = 10 * time.Minute
	guestKernelBuild = "Thu Jan  1 00:00:00 UTC 1970" // told by uname -v
)

// kernelEdit changes one place of the kernel's source.
type kernelEdit struct{ path, old, new string }

// guestKernelEdits are all changes that are made to Debian's source.
var guestKernelEdits = []kernelEdit{{
	// The timer of the local APIC counts at 1 GHz in KVM and in QEMU. A kernel that
	// knows doesn't measure it, for 0.2 s of each start on a processor without a
	// deadline timer, as QEMU emulates it.
	path: "arch/x86/kernel/apic/apic.c",
	old:  "\nunsigned int lapic_timer_period = 0;\n",
	new:  "\nunsigned int lapic_timer_period = 1000000000 / HZ;\n",
}}

// kernelUnused are folders of the source, large ones, whose code no guest runs; what
// describes their options is needed all the same.
var kernelUnused = []string{
	"drivers/gpu", "drivers/infiniband", "drivers/media", "drivers/net/ethernet", "drivers/net/wireless",
	"drivers/staging", "sound", "tools/testing",
}

// guestVmlinux is the kernel that microVMs boot. It lies in the cache: a build of
// the same sources takes it from there, whatever happened to the other steps.
func (b *builder) guestVmlinux() string { return filepath.Join(b.cache, "guest", "vmlinux") }

// guestKernel compiles the kernel that microVMs boot from Debian's source, unless
// another checkout has done so.
func (b *builder) guestKernel() error {
	compiler, err := run.Output(b.ctx, quick, "gcc", "--version")
	if err != nil {
		return err
	}
	linker, err := run.Output(b.ctx, quick, "ld", "--version")
	if err != nil {
		return err
	}
	k := newKey("guest kernel 1", b.lockedPackage(kernelSource), list("guest-kernel"), guestKernelEdits,
		kernelUnused, guestKernelBuild, string(compiler), string(linker))
	return b.step(guestKernelStep, k, []string{b.guestVmlinux()}, func() error {
		sum, err := k.sum()
		if err != nil {
			return err
		}
		kept := keepOf("guest-kernel", sum)
		if ok, err := kept.take(b.guestVmlinux()); ok || err != nil {
			return err
		}
		tree := filepath.Join(b.work, "guest-kernel")
		defer os.RemoveAll(tree)
		if err := b.compileGuestKernel(tree); err != nil {
			return err
		}
		return kept.put(b.guestVmlinux())
	})
}

// lockedPackage is the exact package of a name, as a text.
func (b *builder) lockedPackage(name string) string {
	i := slices.IndexFunc(b.lock, func(p debPackage) bool { return p.Name == name })
	if i < 0 {
		return ""
	}
	return fmt.Sprint(b.lock[i])
}

// compileGuestKernel unpacks the source into a folder and compiles it there.
func (b *builder) compileGuestKernel(tree string) error {
	if err := b.unpackKernel(tree); err != nil {
		return err
	}
	for _, edit := range guestKernelEdits {
		if err := edit.apply(tree); err != nil {
			return err
		}
	}
	options := filepath.Join(tree, "guest-kernel.config")
	if err := os.WriteFile(options, []byte(strings.Join(list("guest-kernel"), "\n")+"\n"), 0o644); err != nil {
		return err
	}
	if err := b.makeKernel(tree, "KCONFIG_ALLCONFIG="+options, "allnoconfig"); err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join(tree, ".config"))
	if err != nil {
		return err
	}
	if refused := refusedOptions(list("guest-kernel"), string(config)); len(refused) > 0 {
		return fmt.Errorf("the kernel's configuration has not: %s", strings.Join(refused, ", "))
	}
	if err := b.makeKernel(tree, "-j"+strconv.Itoa(runtime.NumCPU()), "vmlinux"); err != nil {
		return err
	}
	return b.stripKernel(filepath.Join(tree, "vmlinux"))
}

// unpackKernel lays the source out in an empty folder.
func (b *builder) unpackKernel(tree string) error {
	if err := os.RemoveAll(tree); err != nil {
		return err
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	args := []string{"-C", tree, "--strip-components=1", "--no-same-owner"}
	for _, dir := range kernelUnused {
		for _, code := range []string{"*.c", "*.h", "*.S"} {
			args = append(args, "--exclude="+filepath.Join(kernelSource, dir, code))
		}
	}
	archive := b.debian("usr/src/" + kernelSource + ".tar.xz")
	_, err := run.Output(b.ctx, kernelSourceMax, "tar", append(args, "-xf", archive)...)
	return err
}

// apply makes the edit in a tree. It fails unless there is exactly one place for it.
func (e kernelEdit) apply(tree string) error {
	path := filepath.Join(tree, e.path)
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if n := strings.Count(string(content), e.old); n != 1 {
		return fmt.Errorf("%s has %d places like %q: look what became of it", e.path, n, strings.TrimSpace(e.old))
	}
	return os.WriteFile(path, []byte(strings.Replace(string(content), e.old, e.new, 1)), 0o644)
}

// makeKernel runs the kernel's make with an environment of its own: what is set
// around this build must not change its result.
func (b *builder) makeKernel(tree string, args ...string) error {
	env := []string{
		"-i", "PATH=" + os.Getenv("PATH"), "LC_ALL=C", "LOCALVERSION=", "KBUILD_BUILD_USER=capsule",
		"KBUILD_BUILD_HOST=capsule", "KBUILD_BUILD_VERSION=1", "KBUILD_BUILD_TIMESTAMP=" + guestKernelBuild,
	}
	argv := append(env, "make", "-C", tree, "-s", "ARCH=x86_64")
	_, err := run.Output(b.ctx, guestKernelMax, "env", append(argv, args...)...)
	return err
}

// stripKernel puts the kernel without its symbols where microVMs find it. The file
// is made anew: another build's kernel may be the same file by another name.
func (b *builder) stripKernel(vmlinux string) error {
	if err := os.MkdirAll(filepath.Dir(b.guestVmlinux()), 0o755); err != nil {
		return err
	}
	next := b.guestVmlinux() + ".new"
	if _, err := run.Output(b.ctx, quick, "strip", "-o", next, vmlinux); err != nil {
		return err
	}
	return errors.Join(os.Chmod(next, 0o644), os.Rename(next, b.guestVmlinux()))
}

// refusedOptions are those that a configuration has not as they were asked for:
// unknown to this kernel, or dependent on one that is off.
func refusedOptions(options []string, config string) []string {
	set := map[string]bool{}
	for line := range strings.Lines(config) {
		set[strings.TrimSpace(line)] = true
	}
	var refused []string
	for _, option := range options {
		if !set[option] {
			refused = append(refused, option)
		}
	}
	return refused
}
