package pid1

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/lastboot"
)

const (
	kernelRecordMax = 8 << 10 // bytes, the kernel's own bound of one
	// A driver that complains without end must not wear the disk out.
	kernelQuota = 256 << 10 // bytes that are kept of kernelSpan
	kernelSpan  = time.Minute

	userFacility = 1 // of what a program wrote to the ring
)

// A kernelLog keeps what the kernel says across boots, for as long as the disk takes
// it. The ring itself is read by whoever wants to know of this boot: this file lacks
// what could not be written, which is what one looks for when a disk dies.
type kernelLog struct {
	out  *logFile
	boot string

	ring *os.File
	done chan struct{}

	until time.Time // end of the span
	left  int       // bytes of it
	lost  int       // lines left out in it
}

// keepKernelLog follows the ring until close.
func keepKernelLog(ring, dir string) (*kernelLog, error) {
	f, err := os.OpenFile(ring, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("keep the kernel's log: %w", err)
	}
	k := &kernelLog{out: newLogFile(filepath.Join(dir, "kernel.log")), boot: lastboot.ThisBoot(), ring: f, done: make(chan struct{})}
	go k.follow()
	return k, nil
}

func (k *kernelLog) follow() {
	defer close(k.done)
	buf := make([]byte, kernelRecordMax)
	for {
		n, err := k.ring.Read(buf)
		if errors.Is(err, unix.EPIPE) { // records were overwritten
			continue
		}
		if err != nil || n == 0 {
			return
		}
		if r, ok := parseKernel(buf[:n]); ok && !r.ours() {
			k.keep(r, time.Now())
		}
	}
}

// keep writes a record down, if there is quota for it.
func (k *kernelLog) keep(r kernelRecord, now time.Time) {
	if now.After(k.until) {
		if k.lost > 0 {
			k.write(keptLine(r.up, k.boot, r.number, fmt.Sprintf("(%d lines were too many to be kept)", k.lost)))
		}
		k.until, k.left, k.lost = now.Add(kernelSpan), kernelQuota, 0
	}
	line := keptLine(r.up, k.boot, r.number, r.text)
	if len(line) > k.left {
		k.lost++
		return
	}
	k.left -= len(line)
	k.write(line)
}

func (k *kernelLog) write(line []byte) { _, _ = k.out.Write(line) }

// close lets go of the file system that the file is on. It waits for the disk.
func (k *kernelLog) close() {
	if k == nil {
		return
	}
	k.ring.Close()
	<-k.done
	k.out.Close()
}

// kernelRecord is one of /dev/kmsg: "PREFIX,SEQUENCE,µs,FLAGS;TEXT" and lines of
// details (kernel Documentation/ABI/testing/dev-kmsg).
type kernelRecord struct {
	facility uint64
	number   uint64
	up       time.Duration
	text     string
}

func parseKernel(data []byte) (kernelRecord, bool) {
	head, text, ok := bytes.Cut(data, []byte(";"))
	fields := strings.Split(string(head), ",")
	if !ok || len(fields) < 3 {
		return kernelRecord{}, false
	}
	prefix, err1 := strconv.ParseUint(fields[0], 10, 32)
	number, err2 := strconv.ParseUint(fields[1], 10, 64)
	µs, err3 := strconv.ParseUint(fields[2], 10, 53)
	text, _, _ = bytes.Cut(text, []byte("\n"))
	return kernelRecord{prefix >> 3, number, time.Duration(µs) * time.Microsecond, string(text)}, errors.Join(err1, err2, err3) == nil
}

// ours is what process 1 said, which its own log has.
func (r kernelRecord) ours() bool {
	return r.facility == userFacility && strings.HasPrefix(r.text, ringName)
}
