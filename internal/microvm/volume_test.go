package microvm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/logs"
	"capsule/internal/workload"
)

// data is the folder of a volume that workloads see.
const data = "data"

// dataDisk is a volume of so many MiB in a file.
func dataDisk(t *testing.T, size int, files map[string]string) string {
	t.Helper()
	content := t.TempDir()
	check(t, os.Mkdir(filepath.Join(content, data), 0o755))
	for name, text := range files {
		check(t, os.WriteFile(filepath.Join(content, data, name), []byte(text), 0o644))
	}
	disk := filepath.Join(t.TempDir(), "volume.img")
	check(t, os.WriteFile(disk, nil, 0o600))
	check(t, os.Truncate(disk, int64(size)*mib))
	command(t, "mke2fs", "-q", "-t", "ext4", "-F", "-E", "nodiscard,assume_storage_prezeroed=1", "-d", content, disk)
	return disk
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// content is a file of a volume that nobody has mounted.
func content(t *testing.T, disk, name string) string {
	t.Helper()
	out, err := exec.Command("debugfs", "-R", "cat /"+data+"/"+name, disk).Output()
	check(t, err)
	return string(out)
}

// lines are those of the numbers from 0 below n.
func lines(n int) string {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

// kept is how many lines the payload's verb "keep" said to be on the disk.
func kept(t *testing.T, dir string) int {
	t.Helper()
	var text bytes.Buffer
	check(t, logs.Follow(t.Context(), dir, logs.Options{Tail: -1}, func(r logs.Record) error {
		text.Write(r.Data)
		return nil
	}))
	all := text.String()
	i := strings.LastIndex(all, "kept ")
	if i < 0 {
		return 0
	}
	last, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(all[i+len("kept "):], "\n", 2)[0]))
	check(t, err)
	return last + 1
}

// keeps waits until the payload has kept more lines.
func keeps(t *testing.T, dir string) {
	t.Helper()
	printed(t, dir, fmt.Sprintf("kept %d\n", kept(t, dir)+3))
}

// writer is an instance that keeps lines in its first volume, beside others.
func (w *world) writer(t *testing.T, name, disk string, others int) workload.Instance {
	in := w.instance(t, name, "keep", "/v/lines")
	in.Mounts = []workload.Mount{{Volume: "first", Source: disk, Folder: data, Path: "/v"}}
	for i := range others {
		in.Mounts = append(in.Mounts, workload.Mount{
			Volume: fmt.Sprint("other", i), Source: dataDisk(t, 16, nil), Folder: data, Path: fmt.Sprint("/other", i),
		})
	}
	return in
}

// buses are how many volumes there are beside the first so that it is on that bus.
var buses = map[string]int{"virtio-blk": 0, "virtio-scsi": directMax}

// As many volumes as there may be: each shows what its folder has and nothing
// else of its disk, and keeps what is written.
func TestManyVolumes(t *testing.T) {
	w := newWorld(t)
	in := w.instance(t, "many", "print", "ready", "then", "trap", "15")
	var disks []string
	for i := range mountsMax {
		disks = append(disks, dataDisk(t, 16, map[string]string{"name": fmt.Sprint(i)}))
		in.Mounts = append(in.Mounts, workload.Mount{
			Volume: fmt.Sprint("v", i), Source: disks[i], Folder: data, Path: fmt.Sprint("/v", i), ReadOnly: i == 1,
		})
	}
	w.run(t, in, "ready")
	for i := range mountsMax {
		path := fmt.Sprint("/v", i)
		if out := w.command(t, in.ID, "ls", path, "then", "cat", path+"/name"); out != fmt.Sprintf("name\n%d", i) {
			t.Errorf("%s has %q", path, out)
		}
		if i != 1 {
			w.command(t, in.ID, "write", path+"/new", path)
		}
	}
	var errs bytes.Buffer
	code, err := w.driver.Exec(t.Context(), in.ID, workload.Exec{Command: []string{"/payload", "write", "/v1/new", "x"}, Stdout: &errs, Stderr: &errs})
	if err != nil || code != 1 || !strings.Contains(errs.String(), "read-only") {
		t.Errorf("a write to the read-only one: code %d, %v, %q", code, err, errs.String())
	}
	check(t, w.driver.Stop(t.Context(), in.ID, sigterm, patience))
	if o := w.observe(t, in.ID, workload.Ended); o.Note != "" {
		t.Errorf("%+v", o)
	}
	for i, disk := range disks {
		command(t, "e2fsck", "-fn", disk)
		if i != 1 && content(t, disk, "new") != fmt.Sprintf("/v%d\n", i) {
			t.Errorf("volume %d has %q", i, content(t, disk, "new"))
		}
	}
}

// A volume whose folder is missing, or a link, does not start anything.
func TestVolumeFolder(t *testing.T) {
	w := newWorld(t)
	for folder, want := range map[string]string{"missing": `no folder "missing"`, "data/link": `"data/link" in it is no folder`, "../etc": "not one inside"} {
		in := w.writer(t, "folder", dataDisk(t, 16, nil), 0)
		command(t, "debugfs", "-w", "-R", "symlink /data/link /data", in.Mounts[0].Source)
		in.Mounts[0].Folder = folder
		w.prepare(t, in)
		if err := w.driver.Start(t.Context(), in); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"/v"`) {
			t.Errorf("folder %q: %v", folder, err)
		}
		check(t, w.driver.Remove(t.Context(), in.ID))
		command(t, "e2fsck", "-fn", in.Mounts[0].Source)
	}
}

// A volume grows under its writer, and one that has grown meanwhile at the start.
func TestGrowVolume(t *testing.T) {
	w := newWorld(t)
	for bus, others := range buses {
		t.Run(bus, func(t *testing.T) {
			disk := dataDisk(t, 32, nil)
			in := w.writer(t, "grows", disk, others)
			w.prepare(t, in)
			check(t, os.Truncate(disk, 64*mib))
			w.start(t, in, "kept 2\n")
			check(t, os.Truncate(disk, 256*mib))
			check(t, w.driver.Grown(t.Context(), in.ID, "/v", 256*mib))
			keeps(t, in.LogDir)
			w.command(t, in.ID, "fill", "/v/big", "120")
			// Again is nothing, also for a new daemon.
			check(t, w.fresh().Grown(t.Context(), in.ID, "/v", 256*mib))
			if err := w.driver.Grown(t.Context(), in.ID, "/nowhere", 256*mib); !errdefs.IsNotFound(err) {
				t.Errorf("grow what is not there: %v", err)
			}
			w.driver.Close()
			check(t, os.Truncate(disk, 288*mib))
			w.fresh()
			w.observe(t, in.ID, workload.Running)
			w.has(t, in, 256*mib) // without what it needs itself
			keeps(t, in.LogDir)
			check(t, w.driver.Stop(t.Context(), in.ID, sigkill, patience))
			check(t, w.driver.Grown(t.Context(), in.ID, "/v", 512*mib)) // the next start does
			command(t, "e2fsck", "-fn", disk)
			if n := kept(t, in.LogDir); !strings.HasPrefix(content(t, disk, "lines"), lines(n)) {
				t.Errorf("not all of %d lines are there", n)
			}
			if size := fileSystemBytes(t, disk); size != 288*mib {
				t.Errorf("the file system has %d MiB", size/mib)
			}
			check(t, os.Truncate(disk, 320*mib))
			w.start(t, in, "kept 2\n")
			check(t, w.driver.Stop(t.Context(), in.ID, sigkill, patience))
			if size := fileSystemBytes(t, disk); size != 320*mib {
				t.Errorf("started again, the file system has %d MiB", size/mib)
			}
			check(t, w.driver.Remove(t.Context(), in.ID))
		})
	}
}

// has waits until the file system of the first volume has so many bytes.
func (w *world) has(t *testing.T, in workload.Instance, bytes int64) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		out := w.command(t, in.ID, "df", "/v")
		if n, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64); err == nil && n >= bytes {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the file system has %q bytes, want %d", out, bytes)
		}
	}
}

func fileSystemBytes(t *testing.T, disk string) int64 {
	t.Helper()
	var count, size int64
	for line := range strings.Lines(command(t, "dumpe2fs", "-h", disk)) {
		_, _ = fmt.Sscanf(line, "Block count: %d", &count)
		_, _ = fmt.Sscanf(line, "Block size: %d", &size)
	}
	return count * size
}

// A frozen guest has written out all, and its writers wait until the last one
// thaws, or its time is over.
func TestFreezeVolume(t *testing.T) {
	w := newWorld(t)
	disk := dataDisk(t, 32, nil)
	in := w.writer(t, "frozen", disk, 0)
	if thaw, err := w.freezeUnknown(t, in); err == nil {
		thaw()
		t.Error("froze what is not there")
	}
	w.prepare(t, in)
	thaw, err := w.driver.Freeze(t.Context(), in.ID, time.Second) // nothing runs
	check(t, err)
	thaw()
	w.start(t, in, "kept 2\n")
	first, err := w.driver.Freeze(t.Context(), in.ID, time.Minute)
	check(t, err)
	second := w.freeze(t, in, 2*time.Second) // never shortens
	first()
	w.still(t, in, 3*time.Second)
	copied := filepath.Join(t.TempDir(), "copy")
	command(t, "cp", "--sparse=always", disk, copied)
	n := kept(t, in.LogDir)
	second()
	second() // once is enough
	keeps(t, in.LogDir)
	command(t, "e2fsck", "-fn", copied)
	if strings.Contains(command(t, "dumpe2fs", "-h", copied), "needs_recovery") {
		t.Error("the frozen file system's journal is not empty")
	}
	if got := content(t, copied, "lines"); !strings.HasPrefix(got, lines(n)) {
		t.Errorf("the frozen file system lacks some of %d lines", n)
	}
	w.freeze(t, in, 5*time.Second)
	keeps(t, in.LogDir) // by itself

	// A guest that stands still answers nobody.
	w.do(t, in, "stop")
	began := time.Now()
	_, err = w.driver.Freeze(t.Context(), in.ID, 2*time.Second)
	if took := time.Since(began); !errdefs.IsUnavailable(err) || took > patience/4 {
		t.Errorf("frozen after %v: %v", took, err)
	}
	w.do(t, in, "cont")
	keeps(t, in.LogDir)
	// The end does not wait for a thaw.
	left, err := w.driver.Freeze(t.Context(), in.ID, time.Minute)
	check(t, err)
	check(t, w.driver.Stop(t.Context(), in.ID, sigkill, patience))
	left()
	if o := w.observe(t, in.ID, workload.Ended); o.Note != "" {
		t.Errorf("%+v", o)
	}
}

func (w *world) freezeUnknown(t *testing.T, in workload.Instance) (func(), error) {
	in.Name = "unknown"
	return w.driver.Freeze(t.Context(), in.ID, time.Second)
}

// freeze does so for a short time, in which a slow machine may fail to answer.
func (w *world) freeze(t *testing.T, in workload.Instance, limit time.Duration) (thaw func()) {
	t.Helper()
	for tries := 3; ; tries-- {
		thaw, err := w.driver.Freeze(t.Context(), in.ID, limit)
		if errdefs.IsUnavailable(err) && tries > 1 {
			continue
		}
		check(t, err)
		return thaw
	}
}

// still checks that nothing more is kept for a time. What was printed before may
// take a while to be in the log, a writer that goes on never stops.
func (w *world) still(t *testing.T, in workload.Instance, quiet time.Duration) {
	t.Helper()
	more := 0
	for range 3 {
		n := kept(t, in.LogDir)
		<-time.After(quiet) // that nothing happens can only be seen in time
		if more = kept(t, in.LogDir) - n; more == 0 {
			return
		}
	}
	t.Errorf("%d lines were kept in a frozen file system", more)
}

// What a guest deletes is room of the capsule again.
func TestDiscardVolume(t *testing.T) {
	w := newWorld(t)
	for bus, others := range buses {
		t.Run(bus, func(t *testing.T) {
			disk := dataDisk(t, 128, nil)
			in := w.writer(t, bus, disk, others)
			in.Args = []string{"/payload", "fill", "/v/big", "64", "then", "print", "full", "then", "trap", "15"}
			w.run(t, in, "full")
			full := usage(t, disk)
			w.command(t, in.ID, "rm", "/v/big")
			// Once the journal has committed it, after seconds. An end before that
			// leaves it undone.
			deadline := time.Now().Add(patience)
			for full-usage(t, disk) < 60*mib {
				if time.Now().After(deadline) {
					t.Fatalf("%d MiB of %d are free again", (full-usage(t, disk))/mib, full/mib)
				}
				<-time.After(100 * time.Millisecond)
			}
			check(t, w.driver.Remove(t.Context(), in.ID))
		})
	}
}

// What a payload has synced is there after its machine was killed, and the file
// system is sound.
func TestKilledVolume(t *testing.T) {
	w := newWorld(t)
	for bus, others := range buses {
		t.Run(bus, func(t *testing.T) {
			disk := dataDisk(t, 32, nil)
			in := w.writer(t, "killed", disk, others)
			w.prepare(t, in)
			written := ""
			for i := range 3 {
				in.LogDir = filepath.Join(w.logs, fmt.Sprint(bus, i))
				p := w.start(t, in, "kept 5\n")
				check(t, p.Kill())
				w.observe(t, in.ID, workload.Ended)
				command(t, "e2fsck", "-p", disk) // replays the journal, as before each start
				command(t, "e2fsck", "-fn", disk)
				got := content(t, disk, "lines")
				if n := kept(t, in.LogDir); !strings.HasPrefix(got, written+lines(n)) {
					t.Fatalf("lines are missing: %d were kept, %d bytes are there", n, len(got))
				}
				written = got
			}
			check(t, w.driver.Remove(t.Context(), in.ID))
		})
	}
}

// loopDevice shows a file as a block device.
func loopDevice(t *testing.T, file string) string {
	t.Helper()
	device := strings.TrimSpace(command(t, "losetup", "--find", "--show", file))
	t.Cleanup(func() { command(t, "losetup", "--detach", device) })
	return device
}

// claim opens a device as whoever mounts or checks it does.
func claim(device string) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// A block device is one machine's for as long as its QEMU lives, whatever becomes
// of the daemon.
func TestClaimedVolume(t *testing.T) {
	w := newWorld(t)
	for bus, others := range buses {
		t.Run(bus, func(t *testing.T) {
			disk := dataDisk(t, 64, nil)
			device := loopDevice(t, disk)
			in := w.writer(t, "claims", device, others)
			p := w.run(t, in, "kept 2\n")
			w.fresh()
			for range 2 {
				if err := claim(device); !errors.Is(err, unix.EBUSY) {
					t.Errorf("claimed while QEMU has it: %v", err)
				}
				other := w.writer(t, "second", device, 0)
				other.Mounts[0].ReadOnly = true
				w.prepare(t, other)
				if err := w.driver.Start(t.Context(), other); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "in use") {
					t.Errorf("started a second one: %v", err)
				}
				check(t, w.driver.Remove(t.Context(), other.ID))
			}
			if !direct(t, p.PID, device) {
				t.Error("QEMU goes through the memory of the capsule")
			}
			before, flushed := kept(t, in.LogDir), flushes(t, device)
			for kept(t, in.LogDir) < before+20 {
				keeps(t, in.LogDir)
			}
			if n := flushes(t, device) - flushed; n < 10 { // the log is some lines behind
				t.Errorf("%d flushes of the device for 20 of the payload's", n)
			}
			check(t, os.Truncate(disk, 128*mib))
			command(t, "losetup", "--set-capacity", device)
			check(t, w.driver.Grown(t.Context(), in.ID, "/v", 128*mib))
			keeps(t, in.LogDir)
			n := kept(t, in.LogDir)
			check(t, p.Kill())
			<-p.Done()
			check(t, claim(device))
			command(t, "e2fsck", "-p", device)
			if size := fileSystemBytes(t, device); size != 128*mib {
				t.Errorf("the file system has %d MiB", size/mib)
			}
			if got := content(t, device, "lines"); !strings.HasPrefix(got, lines(n)) {
				t.Errorf("not all of %d lines are there", n)
			}
			w.observe(t, in.ID, workload.Ended)
			w.start(t, in, "kept 2\n")
			check(t, w.driver.Stop(t.Context(), in.ID, sigkill, patience))
			check(t, claim(device))
			check(t, w.driver.Remove(t.Context(), in.ID))
		})
	}
}

// flushes are how often a device was told to write its own memory out
// (Documentation/block/stat.rst).
func flushes(t *testing.T, device string) int {
	t.Helper()
	const field = 15
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "stat"))
	check(t, err)
	n, err := strconv.Atoi(strings.Fields(string(text))[field])
	check(t, err)
	return n
}

// direct tells whether a process has opened the device so, wherever it has.
func direct(t *testing.T, pid int, device string) bool {
	t.Helper()
	var want unix.Stat_t
	check(t, unix.Stat(device, &want))
	found := false
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	check(t, err)
	for _, file := range files {
		var st unix.Stat_t
		if unix.Stat(file, &st) != nil || st.Rdev != want.Rdev || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		info, err := os.ReadFile(strings.Replace(file, "/fd/", "/fdinfo/", 1))
		check(t, err)
		_, flags, _ := strings.Cut(string(info), "flags:")
		n, err := strconv.ParseInt(strings.Fields(flags)[0], 8, 64)
		check(t, err)
		if n&syscall.O_DIRECT == 0 {
			return false
		}
		found = true
	}
	return found
}
