package server

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/lastboot"
)

// kernelRecordMax is the kernel's own bound of one record of /dev/kmsg.
const kernelRecordMax = 8 << 10

// kernelLog is what process 1 has kept of the kernel's log, and of its last words, and
// then the ring itself: it has what a disk did not take.
func kernelLog(dir, ring string) source {
	return func(ctx context.Context, follow bool, give func(sysLine) error) error {
		some := func(l sysLine) error {
			if l.data == nil { // the end of a file is not that of all
				return nil
			}
			return give(l)
		}
		return ringLog(ring, func(oldest uint64) error {
			if err := fileLog(dir, "panic", kept(kernelService))(ctx, false, some); err != nil {
				return err
			}
			return fileLog(dir, "kernel", keptBefore(oldest, lastboot.ThisBoot()))(ctx, false, some)
		})(ctx, follow, give)
	}
}

// keptBefore leaves out lines of this boot that the ring has, from the oldest on.
func keptBefore(oldest uint64, boot string) func([]byte) (sysLine, bool) {
	return func(line []byte) (sysLine, bool) {
		if l, ok := lastboot.ParseLine(line); ok && l.Boot == lastboot.Short(boot) && l.Number >= oldest {
			return sysLine{}, false
		}
		return kept(kernelService)(line)
	}
}

// ringLog reads /dev/kmsg: one record per read, "PRIORITY,SEQUENCE,µs,-;TEXT"
// and lines of details that begin with a space (Documentation/ABI/testing/dev-kmsg).
// Before all it calls before with the number of the oldest record that there is.
func ringLog(path string, before func(oldest uint64) error) source {
	return func(ctx context.Context, follow bool, give func(sysLine) error) error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		defer unix.Close(fd)
		boot := bootTime()
		buf := make([]byte, kernelRecordMax)
		atEnd, begun := false, false
		begin := func(oldest uint64) error {
			if begun {
				return nil
			}
			begun = true
			return before(oldest)
		}
		for {
			n, err := unix.Read(fd, buf)
			switch {
			case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EPIPE): // EPIPE: records were overwritten
				continue
			case errors.Is(err, unix.EAGAIN) || (err == nil && n == 0):
				if !atEnd {
					atEnd = true
					if err := begin(math.MaxUint64); err != nil { // there is none
						return err
					}
					if err := give(sysLine{}); err != nil || !follow {
						return err
					}
				}
				if err := readable(ctx, fd); err != nil {
					return err
				}
				continue
			case err != nil:
				return &os.PathError{Op: "read", Path: path, Err: err}
			}
			l, number, ok := kernelLine(buf[:n], boot)
			if !ok {
				continue
			}
			if err := begin(number); err != nil {
				return err
			}
			if err := give(l); err != nil {
				return err
			}
		}
	}
}

// kernelPoll bounds how long the end of a call goes unseen.
const kernelPoll = 500 * time.Millisecond

func readable(ctx context.Context, fd int) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(kernelPoll.Milliseconds()))
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
}

func kernelLine(record []byte, boot time.Time) (l sysLine, number uint64, ok bool) {
	head, text, ok := bytes.Cut(record, []byte(";"))
	fields := bytes.Split(head, []byte(","))
	if !ok || len(fields) < 3 {
		return sysLine{}, 0, false
	}
	number, err1 := strconv.ParseUint(string(fields[1]), 10, 64)
	µs, err2 := strconv.ParseInt(string(fields[2]), 10, 64)
	if err1 != nil || err2 != nil {
		return sysLine{}, 0, false
	}
	text, _, _ = bytes.Cut(text, []byte("\n"))
	return sysLine{
		time:    boot.Add(time.Duration(µs) * time.Microsecond),
		service: kernelService, data: append(bytes.Clone(text), '\n'),
	}, number, true
}

// bootTime by the clock as it is set now.
func bootTime() time.Time {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(up.Nano()))
}
