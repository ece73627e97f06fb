package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/cgroup"
	"capsule/internal/logs"
)

// loggerStart bounds the wait for the logger to say that it writes.
const loggerStart = 30 * time.Second

// console is what a machine prints into: a logger that outlives us, which ends
// when the machine has.
type console struct {
	logger                 identity
	stdout, stderr, serial *os.File // QEMU's ends
}

// openConsole starts the logger of a machine.
func (d *Driver) openConsole(ctx context.Context, logDir string) (*console, error) {
	if err := os.MkdirAll(logs.Serial(logDir), 0o750); err != nil {
		return nil, err
	}
	c := &console{}
	var ends []*os.File
	var err error
	for _, end := range []**os.File{&c.stdout, &c.stderr, &c.serial} {
		var log *os.File
		if *end, log, err = pair(); err != nil {
			break
		}
		ends = append(ends, log)
	}
	if err == nil {
		c.logger, err = d.startLogger(ctx, logDir, ends)
	}
	for _, log := range ends {
		log.Close()
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("start logger: %w", err)
	}
	return c, nil
}

// close closes QEMU's ends, of which it has copies by now.
func (c *console) close() {
	for _, end := range []*os.File{c.stdout, c.stderr, c.serial} {
		if end != nil {
			end.Close()
		}
	}
}

// startLogger returns when it writes.
func (d *Driver) startLogger(ctx context.Context, logDir string, ends []*os.File) (identity, error) {
	wait, ready, err := os.Pipe()
	if err != nil {
		return identity{}, err
	}
	defer wait.Close()
	cmd := exec.Command(d.opts.Logger, logDir, logs.Serial(logDir)) //nolint:noctx // it outlives the call
	cmd.ExtraFiles = []*os.File{ends[0], ends[1], ready, ends[2]}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if d.opts.LogCgroup != "" {
		fd, err := unix.Open(filepath.Join(cgroup.Root, d.opts.LogCgroup), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return identity{}, errors.Join(fmt.Errorf("open cgroup: %w", err), ready.Close())
		}
		defer func() { _ = unix.Close(fd) }()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd
	}
	err = cmd.Start()
	ready.Close()
	if err != nil {
		return identity{}, err
	}
	who, err := identify(cmd.Process.Pid)
	go func() { _ = cmd.Wait() }()
	if err != nil {
		return identity{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = wait.SetReadDeadline(time.Now()) })
	defer stop()
	_ = wait.SetReadDeadline(time.Now().Add(loggerStart))
	if _, err := wait.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		_ = cmd.Process.Kill()
		return identity{}, errors.New("it does not come up")
	}
	return who, nil
}

// oomScoreAdjust is that of all workloads: they go before the capsule's own
// processes.
const oomScoreAdjust = "200"

// expendable takes back what a machine inherited from us; its logger keeps it.
func expendable(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(oomScoreAdjust), 0)
}

// pair is a line of two ends.
func pair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "line"), os.NewFile(uintptr(fds[1]), "line"), nil
}

func isBusy(err error) bool { return errors.Is(err, unix.EBUSY) }
