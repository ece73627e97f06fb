package jail

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"capsule/internal/process"
)

// stageName is the first argument of a process that has to become a program.
const stageName = "capsule-jail"

const (
	// openFilesMax of the program: a disk of 255 layers takes about 1100.
	openFilesMax = 4096
	// rootBytes of the jail's own root, which holds empty files and folders.
	rootBytes = "1M"
)

// Stage must come first in main. In a process that Start made it becomes the
// program and never returns; in all others it does nothing.
func Stage() {
	if os.Args[0] != stageName || len(os.Args) != 2 {
		return
	}
	// What a thread gives up counts for the program that this thread becomes.
	runtime.LockOSThread()
	fd, err := strconv.Atoi(os.Args[1])
	if err != nil {
		os.Exit(2)
	}
	unix.CloseOnExec(fd)
	control := os.NewFile(uintptr(fd), "control")
	_, _ = io.WriteString(control, become(control).Error()) // who could be told otherwise?
	os.Exit(1)
}

// become returns only when it fails.
func become(control *os.File) error {
	text, err := io.ReadAll(control)
	if err != nil {
		return err
	}
	var o order
	if err := json.Unmarshal(text, &o); err != nil {
		return fmt.Errorf("read order: %w", err) // its sender has died
	}
	if err := o.enterRoot(); err != nil {
		return err
	}
	if err := o.limit(); err != nil {
		return err
	}
	if err := process.Become(process.Account{UID: o.UID, GID: o.GID}, nil); err != nil {
		return err
	}
	heedSignals()
	if _, err := io.WriteString(control, running); err != nil {
		return err
	}
	return fmt.Errorf("run it: %w", unix.Exec(o.Args[0], o.Args, nil))
}

// enterRoot replaces all that the process sees by the root of the order.
func (o order) enterRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	trees, err := o.trees()
	if err != nil {
		return err
	}
	numbers, err := o.deviceNumbers()
	if err != nil {
		return err
	}
	if err := pivot(); err != nil {
		return err
	}
	for i, m := range o.Root {
		if err := attach(trees[i], m.Path); err != nil {
			return fmt.Errorf("show %s: %w", m.Path, err)
		}
	}
	for i, path := range o.Devices {
		if err := o.makeDevice(path, numbers[i]); err != nil {
			return fmt.Errorf("make device %s: %w", path, err)
		}
	}
	if err := setMount(unix.AT_FDCWD, "/", unix.MOUNT_ATTR_RDONLY); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return unix.Sethostname([]byte("jail"))
}

// trees are read-only copies of the mounts, attached nowhere yet.
func (o order) trees() ([]int, error) {
	var trees []int
	for _, m := range o.Root {
		tree, err := unix.OpenTree(unix.AT_FDCWD, m.Host, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err == nil {
			err = setMount(tree, "", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
		}
		if err != nil {
			return nil, fmt.Errorf("take %s: %w", m.Host, err)
		}
		trees = append(trees, tree)
	}
	return trees, nil
}

func setMount(dir int, path string, attributes uint64) error {
	var flags uint
	if path == "" {
		flags = unix.AT_EMPTY_PATH
	}
	return unix.MountSetattr(dir, path, flags, &unix.MountAttr{Attr_set: attributes})
}

func (o order) deviceNumbers() ([]int, error) {
	var numbers []int
	for _, path := range o.Devices {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return nil, fmt.Errorf("find device %s: %w", path, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFCHR {
			return nil, fmt.Errorf("%s is no character device", path)
		}
		numbers = append(numbers, int(st.Rdev)) //nolint:gosec // 32 bits are in use
	}
	return numbers, nil
}

// pivot makes an empty folder in memory the root, and lets go of the old one.
func pivot() error {
	root, err := newRoot()
	if err != nil {
		return fmt.Errorf("make a root: %w", err)
	}
	// On top of the old root, which is sure to be there.
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	if err := unix.Fchdir(root); err != nil {
		return err
	}
	// pivot_root(2): the old root ends up on top of the new one.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	return unix.Chdir("/")
}

func newRoot() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	for _, o := range [][2]string{{"mode", "0755"}, {"size", rootBytes}} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
}

// attach mounts a tree at a path of the new root.
func attach(tree int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
	} else if err := emptyFile(path); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func emptyFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, nil, 0o600)
}

// makeDevice makes a node that the program's user alone may use.
func (o order) makeDevice(path string, number int) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, number); err != nil {
		return err
	}
	return unix.Chown(path, int(o.UID), int(o.GID))
}

func (o order) limit() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	files.Max = min(files.Max, openFilesMax)
	files.Cur = files.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("limit open files: %w", err)
	}
	unix.Umask(0o077)
	// What this process has open beside the program's files ends here.
	return unix.CloseRange(uint(firstFile+o.Files), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}

// signalsMax is the highest signal of Linux.
const signalsMax = 64

// heedSignals gives every signal its default action. What an ancestor chose to
// ignore is ignored by all that it starts, and the runtime leaves some as they are.
func heedSignals() {
	var action [4]uint64 // struct sigaction of the kernel: all zero is SIG_DFL
	for signal := uintptr(1); signal <= signalsMax; signal++ {
		// Two signals always have theirs: their error says just that.
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	}
}
