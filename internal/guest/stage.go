package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"capsule/internal/process"
)

// stageName is how the agent's program is called when it is to become the
// payload or one of its commands.
const stageName = "capsule-init"

// Descriptors of a stage beside the standard ones.
const (
	launchFD = 3 // to read the launch from
	reportFD = 4 // to write a problem to; its end without one is success
	joinFD   = 5 // pidfd of the payload's first process, for a command
)

// oomScore makes the kernel prefer the payload to what else runs.
const oomScore = "200"

// A launch is all that a stage needs to know.
type launch struct {
	Root     string // folder that becomes the root; "" joins the payload's namespaces
	Hostname string
	Shown    []showing

	Args        []string
	Env         []string
	Cwd         string
	Account     process.Account
	Limits      []limit
	OwnStandard bool // standard input, output and error become the account's
}

// A limit of the program, by the numbers of setrlimit.
type limit struct {
	Resource   int
	Soft, Hard uint64
}

// limits of every payload. Processes are limited by the cgroup, for all users
// together.
var limits = []limit{
	{unix.RLIMIT_NOFILE, process.FilesDefault, process.FilesMax},
	{unix.RLIMIT_NPROC, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
}

// showing is a file or folder of the agent that the payload sees at a path.
type showing struct {
	Source, Path string
	ReadOnly     bool
}

// Stage runs the process as a stage, and does not return, when it was started as
// one. A program that runs payloads calls it first.
func Stage() {
	if len(os.Args) == 0 || os.Args[0] != stageName {
		return
	}
	// Namespaces, rights and the working folder are those of a thread; this one
	// becomes the program.
	runtime.LockOSThread()
	err := stage()
	report := os.NewFile(reportFD, "report")
	problem := &process.Problem{Text: err.Error()}
	_ = errors.As(err, &problem)
	_ = json.NewEncoder(report).Encode(problem)
	os.Exit(1)
}

// stage only returns when it failed.
func stage() error {
	unix.CloseOnExec(reportFD)
	text, err := io.ReadAll(os.NewFile(launchFD, "launch"))
	if err != nil {
		return err
	}
	_ = unix.Close(launchFD)
	var l launch
	if err := json.Unmarshal(text, &l); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the agent's working folder: %w", err)
	}
	if l.Root == "" {
		err = join()
	} else {
		err = enter(l)
	}
	if err != nil {
		return err
	}
	return run(l)
}

// join enters the payload's namespaces but that of processes, in which the agent
// started us.
func join() error {
	unix.CloseOnExec(joinFD)
	return unix.Setns(joinFD, unix.CLONE_NEWNS|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC|unix.CLONE_NEWCGROUP)
}

// run becomes the program, as the account and with its rights.
func run(l launch) error {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0); err != nil {
		return err
	}
	if err := unix.CloseRange(launchFD, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close what is not the program's: %w", err)
	}
	for _, limit := range l.Limits {
		if err := syscall.Setrlimit(limit.Resource, &syscall.Rlimit{Cur: limit.Soft, Max: limit.Hard}); err != nil {
			return fmt.Errorf("set resource limit %d: %w", limit.Resource, err)
		}
	}
	if l.OwnStandard {
		if err := ownStandard(l.Account.UID); err != nil {
			return err
		}
	}
	unix.Umask(0o022)
	// Where only root may go, the account starts in the folder all the same.
	asRoot := unix.Chdir(l.Cwd)
	if err := process.Become(l.Account, process.Capabilities); err != nil {
		return err
	}
	if asRoot != nil {
		if err := unix.Chdir(l.Cwd); err != nil {
			return &process.Problem{Code: process.CannotRun, Text: fmt.Sprintf("working folder %q: %v", l.Cwd, err)}
		}
	}
	return execute(l)
}

// execute becomes the program, looked up as a shell does.
func execute(l launch) error {
	name := l.Args[0]
	if strings.Contains(name, "/") {
		return cannot(name, unix.Exec(name, l.Args, l.Env))
	}
	search, _ := process.Lookup(l.Env, "PATH")
	worst := error(unix.ENOENT)
	for dir := range strings.SplitSeq(search, ":") {
		err := unix.Exec(path.Join(dir, name), l.Args, l.Env)
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			worst = err
		}
	}
	return cannot(name, worst)
}

// cannot tells why a program did not start.
func cannot(name string, err error) error {
	code := process.CannotRun
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		code = process.NotFound
	}
	return &process.Problem{Code: code, Text: fmt.Sprintf("start %q: %v", name, err)}
}

// ownStandard lets programs of another user than root open /dev/stdout.
func ownStandard(uid uint32) error {
	for fd := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) || st.Uid == uid {
			continue // /dev/null is everybody's
		}
		if err := unix.Fchown(fd, int(uid), -1); err != nil {
			return fmt.Errorf("give standard stream %d to user %d: %w", fd, uid, err)
		}
	}
	return nil
}
