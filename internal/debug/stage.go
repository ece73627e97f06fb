package debug

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"capsule/internal/process"
)

// stageName is the first argument of a process that has to become a command.
const stageName = "capsule-debug"

const (
	// firstToGo is the oom_score_adj of a session: it goes before any workload does.
	firstToGo = "900"
	// writtenMax bounds what is written into the root, which is in memory.
	writtenMax = "25%"
	// buildDir is where the root is put together: any folder does, for its mounts are
	// the session's own.
	buildDir = "/tmp"
)

// shown are the machine's own file systems in a session, without what is mounted below
// them; those that are not there are left out.
var shown = []string{"/proc", "/sys", "/sys/fs/cgroup", "/sys/firmware/efi/efivars", "/dev", "/dev/pts", "/dev/shm", "/run"}

// Stage must come first in main. In a process that Run made it becomes the command and
// never returns; in all others it does nothing.
func Stage() {
	if os.Args[0] != stageName || len(os.Args) < 3 {
		return
	}
	runtime.LockOSThread()
	code, err := become(os.Args[1], os.Args[2:])
	fmt.Fprintf(os.Stderr, "capsule: %v\n", err)
	os.Exit(code)
}

// become returns only when it fails.
func become(tools string, command []string) (code int, err error) {
	if err := enter(tools); err != nil {
		return process.CannotRun, err
	}
	// Else it would be spared as the daemon is that started it.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(firstToGo), 0); err != nil {
		return process.CannotRun, err
	}
	unix.Umask(0o022)
	program, err := exec.LookPath(command[0])
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return process.NotFound, fmt.Errorf("no program %q among the tools", command[0])
	case err != nil:
		return process.CannotRun, err
	}
	return process.CannotRun, fmt.Errorf("run %q: %w", program, unix.Exec(program, command, os.Environ()))
}

// enter replaces all mounts that the process sees.
func enter(tools string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("leave the machine's mounts: %w", err)
	}
	root, err := stack(tools)
	if err != nil {
		return err
	}
	for _, dir := range shown {
		if err := show(dir, root); err != nil {
			return fmt.Errorf("show %s: %w", dir, err)
		}
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	// pivot_root(2): the old root ends up on top of the new one.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	if os.Chdir("/root") != nil { // tools without one
		return unix.Chdir("/")
	}
	return nil
}

// stack mounts the tools with a file system in memory above.
func stack(tools string) (root string, err error) {
	// Before buildDir is covered, in which a test keeps them.
	tree, err := unix.OpenTree(unix.AT_FDCWD, tools, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open the tools: %w", err)
	}
	defer unix.Close(tree)
	if err := unix.Mount("capsule-debug", buildDir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "mode=0755,size="+writtenMax); err != nil {
		return "", fmt.Errorf("make room to write: %w", err)
	}
	for _, dir := range []string{"lower", "upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(buildDir, dir), 0o755); err != nil {
			return "", err
		}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, buildDir+"/lower", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", fmt.Errorf("mount the tools: %w", err)
	}
	root = buildDir + "/root"
	data := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", buildDir)
	if err := unix.Mount("capsule-debug", root, "overlay", unix.MS_NODEV|unix.MS_NOSUID, data); err != nil {
		return "", fmt.Errorf("stack the tools: %w", err)
	}
	tmp := filepath.Join(root, "tmp") // for tools that give up their rights
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return "", err
	}
	return root, os.Chmod(tmp, os.ModeSticky|0o777)
}

// show mounts a copy of the machine's mount of dir below the root.
func show(dir, root string) error {
	var here, above unix.Stat_t
	if unix.Stat(dir, &here) != nil || unix.Stat(filepath.Dir(dir), &above) != nil || here.Dev == above.Dev {
		return nil // nothing is mounted there
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	to := filepath.Join(root, dir)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
