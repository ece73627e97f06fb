package logs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watch waits for changes of a log folder by inotify.
type watch struct {
	dir    string
	file   *os.File
	parent int // watch of the folder above, which tells of the removal
	stop   func() bool
	buf    [16 << 10]byte
}

func newWatch(ctx context.Context, dir string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &watch{dir: dir, file: os.NewFile(uintptr(fd), "inotify")}
	// An open log keeps the folder's inode alive, and with it IN_DELETE_SELF
	// back: the entry in the folder above goes at once.
	w.parent, err = unix.InotifyAddWatch(fd, filepath.Dir(dir), unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVE)
	if err == nil {
		err = w.addDir()
	}
	if err != nil {
		w.file.Close()
		return nil, err
	}
	w.stop = context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	return w, nil
}

// addDir watches the folder itself, which may not be there yet.
func (w *watch) addDir() error {
	var err error
	control, cerr := w.file.SyscallConn()
	if cerr != nil {
		return cerr
	}
	cerr = control.Control(func(fd uintptr) {
		_, err = unix.InotifyAddWatch(int(fd), w.dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_DELETE)
	})
	if cerr == nil && !errors.Is(err, unix.ENOENT) {
		cerr = err
	}
	return cerr
}

func (w *watch) close() {
	w.stop()
	w.file.Close()
}

// wait returns at the next change, when the folder was removed, or when ctx
// ends.
func (w *watch) wait(ctx context.Context) (removed bool, err error) {
	for {
		n, err := w.file.Read(w.buf[:])
		if ctx.Err() != nil {
			return false, nil //nolint:nilerr // the end that was asked for is no failure
		}
		if err != nil {
			return false, err
		}
		changed, removed, created := w.events(w.buf[:n])
		if created {
			if err := w.addDir(); err != nil {
				return false, err
			}
		}
		if changed || created || removed {
			return removed, nil
		}
	}
}

// events reads a batch of inotify events, see inotify(7).
func (w *watch) events(b []byte) (changed, removed, created bool) {
	base := filepath.Base(w.dir)
	for len(b) >= unix.SizeofInotifyEvent {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
		end := min(unix.SizeofInotifyEvent+int(e.Len), len(b))
		name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:end]), "\x00")
		b = b[end:]
		switch {
		case e.Mask&unix.IN_Q_OVERFLOW != 0:
			changed = true
		case int(e.Wd) != w.parent:
			changed = changed || e.Mask&unix.IN_IGNORED == 0
		case name != base:
		case e.Mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0:
			removed = true
		default:
			created = true
		}
	}
	return changed, removed, created
}
