// Command vmexec runs a Go test binary inside a virtual machine of the kernel
// and the root that the image is built from: for `go test -exec`. It is how
// tests meet device-mapper, cgroup v2, nftables and overlay whatever the
// kernel of the build machine lacks.
//
//	go test -exec 'go run ./test/vmexec --' ./internal/container
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"capsule/internal/qemu"
)

func main() {
	var o options
	flag.StringVar(&o.build, "build", "", "folder with vmlinuz and root-*.erofs (default: build/ of the module)")
	flag.StringVar(&o.memory, "memory", "2048", "MiB of memory")
	flag.StringVar(&o.disk, "disk", "8G", "size of the blank scratch disk, /dev/vdb")
	flag.StringVar(&o.data, "data", "16G", "size of the empty data disk, /dev/vdc: for a volume group")
	flag.Func("drive", "SERIAL=FILE: a further disk, of which the tests' writes are lost; may be repeated", func(s string) error {
		serial, file, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("want SERIAL=FILE")
		}
		o.drives = append(o.drives, drive{serial, file})
		return nil
	})
	flag.DurationVar(&o.limit, "limit", 25*time.Minute, "longest run, beyond the -timeout of the test binary, which says more")
	flag.Parse()
	code, err := run(o, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "error: vmexec:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// drivesAt is the first place on the PCI bus for further disks; the last of 31
// is the chipset's.
const drivesAt = 0x10

// A drive is a further disk: its serial number and its file.
type drive struct{ serial, file string }

type options struct {
	drives                    []drive
	build, memory, disk, data string
	limit                     time.Duration
}

// What the guest's init prints: upMark is the line before the test binary's first,
// exitMark precedes the exit code on the last line.
const (
	upMark   = "VMEXEC-UP"
	exitMark = "VMEXEC-EXIT "
)

// bootMax is from power on to the test binary, which takes some ten seconds. On a
// busy machine QEMU's emulation now and then loses the first timer interrupts of a
// processor, and that kernel waits for ever: it is started again, up to bootTries.
const (
	bootMax   = 4 * time.Minute
	bootTries = 3
)

func run(o options, args []string) (int, error) {
	if len(args) == 0 {
		return 0, errors.New("usage: vmexec [flags] -- TEST-BINARY [ARGS]")
	}
	if o.build == "" {
		root, err := moduleRoot()
		if err != nil {
			return 0, err
		}
		o.build = filepath.Join(root, "build")
	}
	dir, err := os.MkdirTemp("", "vmexec-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := writeInitramfs(filepath.Join(dir, "initrd"), args[0], guestArgs(args), o.build); err != nil {
		return 0, err
	}
	return boot(o, dir)
}

// guestArgs sends what the go command wants written to files here to a folder
// of the guest: only what is printed comes back, the coverage's percentage too.
func guestArgs(args []string) []string {
	var guest []string
	for _, a := range args {
		name, _, _ := strings.Cut(a, "=")
		switch name {
		case "-test.gocoverdir":
			a = name + "=/tmp"
		case "-test.coverprofile", "-test.testlogfile", "-test.outputdir":
			continue
		}
		guest = append(guest, a)
	}
	return guest
}

var (
	errNoCode = errors.New("the machine ended without an exit code")
	errHung   = fmt.Errorf("the machine did not come up within %v", bootMax)
)

// boot runs the machine, again if its kernel hung before it came up.
func boot(o options, dir string) (code int, err error) {
	for range bootTries {
		if code, err = bootOnce(o, dir); !errors.Is(err, errHung) {
			break
		}
		fmt.Fprintln(os.Stderr, "vmexec:", err)
	}
	return code, err
}

// bootOnce runs the machine until its init powers it off, passing its first serial
// port through; the kernel's messages are shown only when the init gave no code.
func bootOnce(o options, dir string) (int, error) {
	roots, _ := filepath.Glob(filepath.Join(o.build, "root-*.erofs"))
	if len(roots) != 1 {
		return 0, fmt.Errorf("want one %s/root-*.erofs, have %d; run make image", o.build, len(roots))
	}
	scratch, data := filepath.Join(dir, "scratch"), filepath.Join(dir, "data")
	for file, size := range map[string]string{scratch: o.disk, data: o.data} {
		if err := os.RemoveAll(file); err != nil { // of a try before
			return 0, err
		}
		if out, err := exec.Command("truncate", "-s", size, file).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("make disk %s: %w: %s", filepath.Base(file), err, out)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.limit)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	up := time.AfterFunc(bootMax, func() { stop(errHung) })
	defer up.Stop()
	argv := []string{
		"-machine", "q35", "-accel", qemu.EmulatedAccel, "-cpu", qemu.EmulatedCPU, "-smp", "2", "-m", o.memory,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", filepath.Join(o.build, "vmlinuz"), "-initrd", filepath.Join(dir, "initrd"),
		"-append", "console=ttyS1 quiet panic=-1 rdinit=/init transparent_hugepage=madvise",
		"-drive", "if=virtio,format=raw,readonly=on,file=" + roots[0],
		"-drive", "if=virtio,format=raw,cache=unsafe,discard=unmap,file=" + scratch,
		"-drive", "if=virtio,format=raw,cache=unsafe,discard=unmap,file=" + data,
		"-device", "virtio-rng-pci",
		"-serial", "stdio",
		"-serial", "file:" + filepath.Join(dir, "kernel"),
	}
	for i, d := range o.drives { // behind the others on the bus: names go by that
		argv = append(argv, "-drive", "if=none,format=raw,cache=unsafe,snapshot=on,id="+d.serial+",file="+d.file,
			"-device", "virtio-blk-pci,drive="+d.serial+",serial="+d.serial+",addr="+fmt.Sprintf("%#x", drivesAt+i))
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", argv...)
	// go test kills this program when the time is up; the machine would run on. The
	// signal is sent when the thread ends that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	last := tailWriter{out: os.Stdout, up: func() { up.Stop() }}
	cmd.Stdout = &last
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if code, ok := last.exitCode(); ok {
		return code, nil
	}
	kernel, _ := os.ReadFile(filepath.Join(dir, "kernel"))
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return 0, fmt.Errorf("%w: %s\n%s", errors.Join(errNoCode, err), stderr.Bytes(), tail(kernel, 4000))
}

func tail(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}

// tailWriter passes lines on, keeping back what the init says of itself.
type tailWriter struct {
	out  io.Writer
	up   func() // called when the test binary starts
	line []byte
	code string
}

func (w *tailWriter) Write(p []byte) (int, error) {
	w.line = append(w.line, p...)
	for {
		i := bytes.IndexByte(w.line, '\n')
		if i < 0 {
			return len(p), nil
		}
		line := w.line[:i+1]
		if j := bytes.Index(line, []byte(exitMark)); j >= 0 {
			w.code = strings.TrimSpace(string(line[j+len(exitMark):]))
			line = line[:j]
		} else if string(bytes.TrimSpace(line)) == upMark {
			w.up()
			line = nil
		}
		if _, err := w.out.Write(line); err != nil {
			return 0, err
		}
		w.line = w.line[i+1:]
	}
}

func (w *tailWriter) exitCode() (int, bool) {
	n, err := strconv.Atoi(w.code)
	return n, err == nil
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find module: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}
