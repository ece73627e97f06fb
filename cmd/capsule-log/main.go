// Command capsule-log writes what one workload prints to its log folder.
// containerd's shim starts it with the workload's standard output as
// descriptor 3 and standard error as 4; closing descriptor 5 tells that it is
// ready. A microVM's driver does the same and names a second folder, for what
// comes from the guest's serial line by descriptor 6. It lives as long as
// somebody can still print, whatever becomes of the daemons, and is kept tiny
// since each running workload has one.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"capsule/internal/logs"
)

const (
	stdoutFD = 3
	stderrFD = 4
	readyFD  = 5
	serialFD = 6

	readBytes = logs.DataMax
	// memoryMax keeps the garbage collector tight; nothing is allocated while
	// lines are copied.
	memoryMax = 2 << 20
)

// serialLimits bound what kernel and agent of a guest say.
var serialLimits = logs.Limits{FileBytes: 256 << 10, Files: 4}

func main() {
	// The shim sends SIGTERM when the workload has ended; what is still in the
	// pipes is written first.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	if err := leaveReserve(); err != nil {
		fmt.Fprintln(os.Stderr, "capsule-log:", err)
		os.Exit(1)
	}
	runtime.GOMAXPROCS(1)
	debug.SetMemoryLimit(memoryMax)
	if len(os.Args) < 2 || len(os.Args) > 3 {
		fmt.Fprintln(os.Stderr, "usage: capsule-log FOLDER [SERIAL-FOLDER]")
		os.Exit(2)
	}
	sources, err := open(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "capsule-log:", err)
		os.Exit(1)
	}
	_ = unix.Close(readyFD)
	copyLines(sources)
	for _, s := range sources {
		if s.stream == logs.Stdout { // both of a workload share one
			s.log.Close()
		}
	}
}

// leaveReserve gives up the right to the part of /perm that is kept for what is
// declared: logs have none of it. All is written by the thread of main.
func leaveReserve() error {
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	data[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	data[0].Permitted &^= 1 << unix.CAP_SYS_RESOURCE
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// source is a descriptor to read and where that goes.
type source struct {
	fd     int32
	stream logs.Stream
	log    *logs.Writer
	joined []byte // of a line whose end has not come; nil for what comes in lines
}

// open makes the writers of the workload's folder and of the serial line's. The
// shim hands over an empty name for the second one.
func open(folders []string) ([]source, error) {
	w, err := logs.NewWriter(folders[0], logs.DefaultLimits)
	if err != nil {
		return nil, err
	}
	w.Follow(logs.LimitsFile)
	sources := []source{{fd: stdoutFD, stream: logs.Stdout, log: w}, {fd: stderrFD, stream: logs.Stderr, log: w}}
	if len(folders) == 1 || folders[1] == "" {
		return sources, nil
	}
	if w, err = logs.NewWriter(folders[1], serialLimits); err != nil {
		return nil, err
	}
	return append(sources, source{fd: serialFD, stream: logs.Stdout, log: w, joined: make([]byte, 0, 2*readBytes)}), nil
}

// take writes what was read. A serial line brings single bytes: they are joined
// into lines.
func (s *source) take(data []byte) {
	if s.joined == nil {
		s.log.Write(s.stream, data)
		return
	}
	s.joined = append(s.joined, data...)
	if end := len(s.joined); s.joined[end-1] == '\n' || end >= readBytes {
		s.settle()
	}
}

// settle writes what was joined so far.
func (s *source) settle() {
	if len(s.joined) > 0 {
		s.log.Write(s.stream, s.joined)
		s.joined = s.joined[:0]
	}
}

// joining is the time in milliseconds that the end of a line is waited for.
const joining = 100

// patience of the next poll.
func patience(sources []source) int {
	for _, s := range sources {
		if len(s.joined) > 0 {
			return joining
		}
	}
	return -1
}

// copyLines until all streams end.
func copyLines(sources []source) {
	var fds []unix.PollFd
	for _, s := range sources {
		fds = append(fds, unix.PollFd{Fd: s.fd, Events: unix.POLLIN})
	}
	buf := make([]byte, readBytes)
	for open := len(fds); open > 0; {
		ready, err := unix.Poll(fds, patience(sources))
		if err != nil && err != unix.EINTR {
			return
		}
		if ready == 0 && err == nil {
			for i := range sources {
				sources[i].settle()
			}
		}
		for i := range fds {
			if fds[i].Revents == 0 {
				continue
			}
			n, err := unix.Read(int(fds[i].Fd), buf)
			if err == unix.EINTR || err == unix.EAGAIN {
				continue
			}
			if n <= 0 {
				fds[i].Fd = -1
				open--
				sources[i].settle()
				continue
			}
			sources[i].take(buf[:n])
		}
		for _, s := range sources {
			s.log.Flush()
		}
	}
}
