package ext4

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ProjectFeatures make a file system that can bound the folders in it, as options of
// mkfs.ext4; a mount with ProjectOption has it do so.
const (
	ProjectFeatures = "project,quota"
	ProjectQuota    = "quotatype=prjquota"
	ProjectOption   = "prjquota"
)

// Of linux/fs.h and linux/quota.h.
const (
	getAttributes = 0x801c581f // FS_IOC_FSGETXATTR
	setAttributes = 0x401c5820 // FS_IOC_FSSETXATTR

	inheritProject = 0x200    // FS_XFLAG_PROJINHERIT
	setQuota       = 0x800008 // Q_SETQUOTA
	projectQuota   = 2        // PRJQUOTA

	quotaBlock = 1 << 10 // bytes, QIF_DQBLKSIZE
	limitsOnly = 1 | 4   // QIF_LIMITS
)

// attributes is struct fsxattr.
type attributes struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

// quota is struct if_dqblk.
type quota struct {
	blocksHard, blocksSoft, space, filesHard, filesSoft, files, blocksTime, filesTime uint64
	valid                                                                             uint32
	_                                                                                 uint32
}

// Bound lets no more than so many bytes and files be kept in some folders of one file
// system together, which are empty yet, whoever writes: those without
// CAP_SYS_RESOURCE get EDQUOT. Without the means for that in the file system the
// error is of class NotImplemented.
func Bound(bytes, files int64, dirs ...string) error {
	var project uint32
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		if project == 0 {
			project, err = projectOf(f)
			if err == nil {
				err = limit(f, project, bytes, files)
			}
		}
		if err == nil {
			err = assign(f, project)
		}
		f.Close()
		if err != nil {
			return fmt.Errorf("bound %s: %w", dir, lacking(err))
		}
	}
	return nil
}

// projectOf a folder is the number of its inode, which no other has while it is there.
func projectOf(dir *os.File) (uint32, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(dir.Fd()), &st)
	return uint32(st.Ino), err //nolint:gosec // 32 bits in ext4
}

func limit(dir *os.File, project uint32, bytes, files int64) error {
	q := quota{blocksHard: uint64(bytes / quotaBlock), filesHard: uint64(files), valid: limitsOnly} //nolint:gosec // sizes
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, dir.Fd(), setQuota<<8|projectQuota, uintptr(project), uintptr(unsafe.Pointer(&q)), 0, 0)
	return failed(errno)
}

// assign makes a folder, and all that will be made in it, count for a project.
func assign(dir *os.File, project uint32) error {
	var a attributes
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), getAttributes, uintptr(unsafe.Pointer(&a))); errno != 0 {
		return errno
	}
	a.project = project
	a.flags |= inheritProject
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), setAttributes, uintptr(unsafe.Pointer(&a)))
	return failed(errno)
}

func failed(errno unix.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

// lacking gives errors of a file system without projects or quotas their class.
func lacking(err error) error {
	for _, e := range []unix.Errno{unix.ESRCH, unix.EOPNOTSUPP, unix.ENOTTY, unix.ENOSYS} {
		if errors.Is(err, e) {
			return fmt.Errorf("the file system counts no projects: %w: %w", errdefs.ErrNotImplemented, err)
		}
	}
	return err
}
