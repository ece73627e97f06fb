package server

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kernelRecordMax is the kernel's own bound of one record of /dev/kmsg.
const kernelRecordMax = 8 << 10

// kernelLog reads /dev/kmsg: one record per read, "PRIORITY,SEQUENCE,µs,-;TEXT"
// and lines of details that begin with a space (Documentation/ABI/testing/dev-kmsg).
func kernelLog(path string) source {
	return func(ctx context.Context, follow bool, give func(sysLine) error) error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		defer unix.Close(fd)
		boot := bootTime()
		buf := make([]byte, kernelRecordMax)
		atEnd := false
		for {
			n, err := unix.Read(fd, buf)
			switch {
			case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EPIPE): // EPIPE: records were overwritten
				continue
			case errors.Is(err, unix.EAGAIN) || (err == nil && n == 0):
				if !atEnd {
					atEnd = true
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
			if l, ok := kernelLine(buf[:n], boot); ok {
				if err := give(l); err != nil {
					return err
				}
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

func kernelLine(record []byte, boot time.Time) (sysLine, bool) {
	head, text, ok := bytes.Cut(record, []byte(";"))
	fields := bytes.Split(head, []byte(","))
	if !ok || len(fields) < 3 {
		return sysLine{}, false
	}
	µs, err := strconv.ParseInt(string(fields[2]), 10, 64)
	if err != nil {
		return sysLine{}, false
	}
	text, _, _ = bytes.Cut(text, []byte("\n"))
	return sysLine{
		time:    boot.Add(time.Duration(µs) * time.Microsecond),
		service: kernelService, data: append(bytes.Clone(text), '\n'),
	}, true
}

// bootTime by the clock as it is set now.
func bootTime() time.Time {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(up.Nano()))
}
