package microvm

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/go-cmp/cmp"

	"capsule/internal/instance"
	"capsule/internal/jail"
	"capsule/internal/qemu"
)

// layerFile is a sparse file whose first and last bytes are the letter.
func layerFile(t testing.TB, letter byte, size int64) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "layer.erofs")
	f, err := os.Create(path)
	check(t, err)
	check(t, f.Truncate(size))
	edge := bytes.Repeat([]byte{letter}, int(min(edgeBytes, size)))
	for _, at := range []int64{0, size - int64(len(edge))} {
		_, err := f.WriteAt(edge, at)
		check(t, err)
	}
	check(t, f.Close())
	f, err = os.Open(path)
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

const edgeBytes = 512

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	return string(out)
}

// Layers of all sizes, read by others than ourselves: the disk by qemu-img, its
// table by go-diskfs and by the library of mount.
func TestImageDiskOfFiles(t *testing.T) {
	for name, sizes := range map[string][]int64{
		"none": {}, "one": {4096}, "odd sizes": {1, 511, 512, 513, mib - 1, mib, mib + 1, 3*mib + 4096}, "very many": make([]int64, layersMax),
	} {
		t.Run(name, func(t *testing.T) {
			for i := range sizes {
				if sizes[i] == 0 {
					sizes[i] = int64(4096 * (i + 1))
				}
			}
			plan, err := planDisk(sizes)
			check(t, err)
			dir := t.TempDir()
			paths := []string{filepath.Join(dir, "table")}
			check(t, os.WriteFile(paths[0], plan.table(), 0o600))
			for i, size := range sizes {
				paths = append(paths, layerFile(t, byte('A'+i%26), size).Name())
			}
			descriptor, raw := filepath.Join(dir, "disk.vmdk"), filepath.Join(dir, "disk.raw")
			check(t, os.WriteFile(descriptor, plan.descriptor(paths), 0o600))
			tool(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", descriptor, raw)
			check(t, compareDisk(raw, paths[1:]))
		})
	}
	if _, err := planDisk(make([]int64, layersMax+1)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("too many layers: %v", err)
	}
	if _, err := planDisk([]int64{4096, 0}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("empty layer: %v", err)
	}
}

// compareDisk checks that a disk's partitions are the layers and then zeros, and
// that both of its tables are good.
func compareDisk(raw string, layers []string) error {
	disk, err := os.ReadFile(raw)
	if err != nil {
		return err
	}
	f, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer f.Close()
	if len(layers) > 0 {
		out, err := exec.Command("partx", "--show", "--noheadings", "--output", "NR,START,SECTORS,NAME", raw).CombinedOutput()
		if err != nil || strings.Count(string(out), "layer") != len(layers) {
			return fmt.Errorf("partx: %w: %s", err, out)
		}
	}
	first, last := disk[sectorBytes:2*sectorBytes], disk[len(disk)-sectorBytes:]
	if string(first[:8]) != "EFI PART" || string(last[:8]) != "EFI PART" {
		return fmt.Errorf("a table is missing")
	}
	if len(layers) <= entriesLeast { // the library knows no larger tables
		table, err := gpt.Read(file.New(f, true), sectorBytes, sectorBytes)
		if err != nil {
			return err
		}
		if err := table.Verify(file.New(f, true), uint64(len(disk))); err != nil {
			return err
		}
	}
	at := int64(mib)
	for i, path := range layers {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		end := at + int64(len(content))
		next := roundUp(end, mib)
		if !bytes.Equal(disk[at:end], content) || len(bytes.Trim(disk[end:next], "\x00")) > 0 {
			return fmt.Errorf("layer %d is not at %d", i+1, at)
		}
		at = next
	}
	return nil
}

// rig is a machine whose files are all there.
type rig struct {
	machine
	files jail.Files
	said  *os.File // what QEMU printed
}

// give adds a file that only QEMU needs.
func (r *rig) give(t testing.TB, f *os.File) int {
	t.Helper()
	t.Cleanup(func() { f.Close() })
	return r.files.Add(f)
}

func (r *rig) listen(t testing.TB, path string) int {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	check(t, err)
	t.Cleanup(func() { l.Close() })
	f, err := l.File()
	check(t, err)
	return r.give(t, f)
}

func newRig(t testing.TB, qmp string, layers ...*os.File) *rig {
	t.Helper()
	r := &rig{machine: plainMachine}
	numbers, made, err := imageDisk(layers, &r.files)
	check(t, err)
	t.Cleanup(func() {
		for _, f := range made {
			f.Close()
		}
	})
	r.Image = numbers
	path := filepath.Join(t.TempDir(), "disk.img")
	check(t, makeDisk(t.Context(), path, 64*mib))
	disk, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	r.Disk = r.give(t, disk)
	for _, number := range []*int{&r.Stdout, &r.Stderr, &r.Serial} {
		ours, theirs := sockets(t)
		t.Cleanup(func() { ours.Close() })
		*number = r.give(t, theirs)
	}
	r.QMP, r.Agent = r.listen(t, qmp), r.listen(t, qmp+"a")
	return r
}

// start runs QEMU in its jail, with the machine standing still.
func (r *rig) start(t testing.TB) *jail.Process {
	t.Helper()
	initramfs := filepath.Join(t.TempDir(), "initramfs")
	check(t, os.WriteFile(initramfs, []byte("none"), 0o644))
	var err error
	r.said, err = os.Create(filepath.Join(t.TempDir(), "said"))
	check(t, err)
	r.give(t, r.said)
	c := jail.Config{
		Root: []jail.Mount{
			{Host: testKernel, Path: r.Kernel}, {Host: initramfs, Path: r.Initramfs},
			{Host: testRoot + "/lib64/ld-linux-x86-64.so.2", Path: "/lib64/ld-linux-x86-64.so.2"},
		},
		Devices: []string{"/dev/null"}, // by which QEMU finds out how files are locked
		UID:     userBase + 1, GID: userBase + 1, Files: r.files, Args: r.arguments(), Stdout: r.said, Stderr: os.Stderr,
	}
	for _, path := range []string{r.Program, "/usr/lib/x86_64-linux-gnu", "/usr/share/qemu"} {
		c.Root = append(c.Root, jail.Mount{Host: testRoot + path, Path: path})
	}
	p, err := jail.Start(t.Context(), c)
	check(t, err)
	t.Cleanup(func() {
		_ = p.Kill()
		<-p.Done()
	})
	return p
}

// The product's QEMU takes all that it is told from open files alone, in its
// jail, and reads large layers right.
func TestMachineOfOpenFiles(t *testing.T) {
	needGuest(t)
	const size = 5 << 30
	big, small := layerFile(t, 'B', size), layerFile(t, 'A', 700)
	socket := filepath.Join(t.TempDir(), "q")
	r := newRig(t, socket, small, big)
	r.Volumes = []volumeDisk{{File: r.files.Add(small), ReadOnly: true}}
	tap, err := openTap()
	check(t, err)
	r.MAC, r.Tap = net.HardwareAddr{2, 0xc5, 172, 30, 0, 3}, r.give(t, tap)
	p := r.start(t)
	q, err := qemu.Dial(t.Context(), socket)
	check(t, err)
	defer q.Close()
	want := map[string]bool{"image": true, "image-file": true, "disk": false, "disk-file": false, "vol1": true, "vol1-file": true}
	if diff := cmp.Diff(want, readOnly(t, q)); diff != "" {
		t.Errorf("read-only disks:\n%s", diff)
	}
	var read []string
	for _, at := range []struct {
		node          string
		letter        byte
		start, length int64
	}{
		{"image", 'A', mib, 512}, {"image", 'A', mib + 512, 188}, {"image", 0, mib + 700, mib - 700},
		{"image", 'B', 2 * mib, edgeBytes}, {"image", 0, 2*mib + edgeBytes, 4096}, {"image", 'B', 2*mib + size - edgeBytes, edgeBytes},
		{"vol1", 'A', 0, 700},
	} {
		command := fmt.Sprintf("qemu-io %s \"read -P %d %d %d\"", at.node, at.letter, at.start, at.length)
		check(t, q.Do(t.Context(), "human-monitor-command", map[string]string{"command-line": command}, nil))
		read = append(read, fmt.Sprintf("read %d/%[1]d bytes at offset %d", at.length, at.start))
	}
	check(t, q.Do(t.Context(), "quit", nil, nil))
	<-p.Done()
	check(t, p.Err())
	said, err := os.ReadFile(r.said.Name())
	check(t, err)
	// Every second line is of how long it took.
	if diff := cmp.Diff(read, regexp.MustCompile(`(?m)^.*bytes at offset \d+|^.*failed.*$`).FindAllString(string(said), -1)); diff != "" {
		t.Errorf("what it read:\n%s", diff)
	}
}

// readOnly tells of each disk whether it is so, and that its flushes count.
func readOnly(t *testing.T, q *qemu.Monitor) map[string]bool {
	t.Helper()
	var nodes []struct {
		Name     string `json:"node-name"`
		ReadOnly bool   `json:"ro"`
		Cache    struct {
			NoFlush bool `json:"no-flush"`
		} `json:"cache"`
	}
	check(t, q.Do(t.Context(), "query-named-block-nodes", map[string]bool{"flat": true}, &nodes))
	named := map[string]bool{}
	for _, n := range nodes {
		if n.Cache.NoFlush {
			t.Errorf("%s ignores flushes", n.Name)
		}
		if !strings.HasPrefix(n.Name, "#") { // a layer
			named[n.Name] = n.ReadOnly
		}
	}
	return named
}

func sockets(t testing.TB) (ours, theirs *os.File) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	check(t, err)
	return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
}

func TestMakeDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	check(t, os.WriteFile(path+".new", bytes.Repeat([]byte("left by a cut"), 1<<20), 0o644))
	check(t, makeDisk(t.Context(), path, instance.DiskDefault))
	info, err := os.Stat(path)
	check(t, err)
	// Beside the tables of its groups the file is a hole.
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; info.Size() != instance.DiskDefault || used > 8*mib || info.Mode() != 0o600 {
		t.Errorf("%d bytes, %d in use, mode %v", info.Size(), used, info.Mode())
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	tool(t, "e2fsck", "-fn", path)
	facts := tool(t, "dumpe2fs", path)
	for _, want := range []string{`Filesystem state: +clean\n`, `Reserved block count: +0\n`, `\[INODE_UNINIT, BLOCK_UNINIT, ITABLE_ZEROED\]`} {
		if !regexp.MustCompile(want).MatchString(facts) {
			t.Errorf("no %q in what dumpe2fs says", want)
		}
	}
	if groups, zeroed := strings.Count(facts, "(Blocks "), strings.Count(facts, "ITABLE_ZEROED]"); groups == 0 || zeroed != groups {
		t.Errorf("tables of %d groups of %d are zeroed, the guest would do the others", zeroed, groups)
	}
	tool(t, "debugfs", "-w", "-R", "mkdir upper", path)
	check(t, makeDisk(t.Context(), path, instance.DiskDefault))
	if out := tool(t, "debugfs", "-R", "ls -p", path); !strings.Contains(out, "/upper/") {
		t.Errorf("it was made anew: %s", out)
	}
	small := path + "2"
	if err := makeDisk(t.Context(), small, 4096); err == nil || !strings.Contains(err.Error(), "mkfs.ext4") {
		t.Errorf("too small: %v", err)
	}
	if left, _ := filepath.Glob(small + "*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
