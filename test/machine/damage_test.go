//go:build machine

package machine

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"

	"capsule/api/manifest"
	"capsule/internal/disk"
	"capsule/internal/lab"
)

// permPartition is the number of PERM in the table.
const permPartition = 4

// damage NAME PARTITION OFFSET LENGTH: overwrites a part of a stopped
// machine's partition with noise. PARTITION is its number in the GPT, or its name.
//
// damage NAME slot_a|slot_b [FILE]: changes one bit of the root there.
func damage(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 2, "damage NAME slot_a|slot_b [FILE]")
	if len(args) < 4 {
		damageSlot(ts, args)
		return
	}
	f := openDisk(ts, args[0])
	defer f.Close()
	start, _ := partition(ts, f, args[1])
	offset, err := strconv.ParseInt(args[2], 10, 64)
	ts.Check(err)
	length, err := strconv.ParseInt(args[3], 10, 64)
	ts.Check(err)
	ts.Check(scribble(f, start+offset, length))
}

// spoil NAME FILE: overwrites the first pages of a file of /perm in a stopped
// machine with noise, as a dying disk does. The file system stays sound.
func spoil(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 2, "spoil NAME FILE")
	f := openDisk(ts, args[0])
	defer f.Close()
	start, size := partition(ts, f, strconv.Itoa(permPartition))
	volume, err := permVolume(io.NewSectionReader(f, start, size))
	ts.Check(err)
	// The offset is a part of the name. The volume may go on elsewhere since it
	// grew, where the bitmaps are not found: "-c" does without them.
	cmd := exec.Command("/usr/sbin/debugfs", "-c", "-R", "blocks "+args[1], fmt.Sprintf("%s?offset=%d", f.Name(), start+volume))
	out, err := cmd.Output()
	ts.Check(err)
	blocks := strings.Fields(string(out))
	if len(blocks) == 0 {
		ts.Fatalf("no blocks of %s found", args[1])
	}
	const blockBytes = 4096
	for _, b := range blocks[:min(len(blocks), 4)] {
		number, err := strconv.ParseInt(b, 10, 64)
		ts.Check(err)
		ts.Check(scribble(f, start+volume+number*blockBytes, blockBytes))
	}
}

// permVolume finds where the first volume starts in a PERM partition, by the
// text that lvm keeps at the partition's head.
func permVolume(r io.ReaderAt) (int64, error) {
	head := make([]byte, 1<<20)
	if _, err := r.ReadAt(head, 0); err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`pe_start = (\d+)`).FindSubmatch(head)
	if m == nil {
		return 0, errors.New("no lvm text at the head of PERM")
	}
	sectors, err := strconv.ParseInt(string(m[1]), 10, 64)
	return sectors * 512, err
}

// digest NAME PARTITION FILE: writes the SHA-256 of a stopped machine's
// partition to a file.
func digest(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 3, "digest NAME PARTITION FILE")
	f := openDisk(ts, args[0])
	defer f.Close()
	start, size := partition(ts, f, args[1])
	sum := sha256.New()
	chunk, zero := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := start; at < start+size; at += int64(len(chunk)) {
		// Holes are as good as zeros, and skipped for speed.
		if data, err := f.Seek(at, 3); errors.Is(err, syscall.ENXIO) { // SEEK_DATA: only a hole is left
			break
		} else if err == nil {
			at += (data - at) / int64(len(chunk)) * int64(len(chunk))
		}
		n, err := f.ReadAt(chunk[:min(int64(len(chunk)), max(0, start+size-at))], at)
		if err != nil && !errors.Is(err, io.EOF) {
			ts.Fatalf("%v", err)
		}
		if !bytes.Equal(chunk[:n], zero[:n]) {
			fmt.Fprintf(sum, "%d\n", at-start)
			sum.Write(chunk[:n])
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), fmt.Appendf(nil, "%x\n", sum.Sum(nil)), 0o644))
}

// grow NAME SIZE: gives a stopped machine a larger disk.
func grow(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 2, "grow NAME SIZE")
	size, err := manifest.ParseSize(args[1])
	ts.Check(err)
	f := openDisk(ts, args[0])
	defer f.Close()
	ts.Check(f.Truncate(size))
}

// openDisk refuses a running machine: QEMU would not see, or undo, a change.
func openDisk(ts *testscript.TestScript, name string) *os.File {
	m, err := lab.Attach("", name)
	ts.Check(err)
	if m.Running() {
		ts.Fatalf("machine %s runs", name)
	}
	f, err := os.OpenFile(m.Disk(), os.O_RDWR, 0)
	ts.Check(err)
	return f
}

// partition gives the first byte and the length of a partition, by number or name.
func partition(ts *testscript.TestScript, f *os.File, wanted string) (start, size int64) {
	info, err := f.Stat()
	ts.Check(err)
	table, err := disk.ReadTable(f, 512, uint64(info.Size()/512))
	ts.Check(err)
	for _, p := range table.Partitions {
		if strconv.Itoa(p.Number) == wanted || p.Name == wanted {
			return int64(p.First) * 512, int64(table.Bytes(p))
		}
	}
	ts.Fatalf("no partition %s", wanted)
	return 0, 0
}

func scribble(f *os.File, at, length int64) error {
	noise := make([]byte, length)
	for i := range noise {
		noise[i] = byte(i*7 + 13)
	}
	_, err := f.WriteAt(noise, at)
	return err
}
