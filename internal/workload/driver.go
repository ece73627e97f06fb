package workload

import (
	"context"
	"io"
	"time"

	"capsule/internal/image"
)

// Driver runs instances of one kind of workload. Images, networks, volumes and
// logs are made by others, so that they mean the same for every kind.
//
// All methods are idempotent: what is already so is success. Errors carry a
// class of containerd/errdefs; InvalidArgument means that the instance can
// never run as declared (no such user, no such program).
type Driver interface {
	// List returns every instance in the runtime that carries our labels,
	// whoever started it: this is the recovery after a restart of the daemon.
	List(ctx context.Context) ([]Observed, error)
	// Prepare makes an instance without starting it, and fails where a start
	// would: it runs while an older generation still serves.
	Prepare(ctx context.Context, in Instance) error
	// Start runs a prepared instance, or one that has ended.
	Start(ctx context.Context, in Instance) error
	// Stop sends the signal, waits for the grace, then kills. The instance
	// stays listed as ended.
	Stop(ctx context.Context, id ID, signal int, grace time.Duration) error
	// Remove kills what runs and leaves nothing of the instance.
	Remove(ctx context.Context, id ID) error
	// Exec runs a command in a running instance until it ends, or ctx does: then
	// nothing is left of it, nor of what it started.
	Exec(ctx context.Context, id ID, e Exec) (code int, err error)
	// CopyTo unpacks a tar stream at path, by the rules of GNU "cp -a" for a
	// source so named.
	CopyTo(ctx context.Context, id ID, path, source string, tar io.Reader) (files, bytes uint64, err error)
	// CopyFrom writes path as a tar stream.
	CopyFrom(ctx context.Context, id ID, path string, tar io.Writer) error
	// Stats reads the use of a running instance.
	Stats(ctx context.Context, id ID) (Stats, error)
	// Freeze writes out what a running instance's own kernel keeps of its volumes,
	// and holds further writes to them until thaw is called, at most for the
	// limit. Where the capsule's kernel has them mounted, there is nothing to do.
	Freeze(ctx context.Context, id ID, limit time.Duration) (thaw func(), err error)
	// Grown has a running instance use all of a volume that is mounted at path and
	// has become sizeBytes large, where the capsule's kernel does not do so itself.
	Grown(ctx context.Context, id ID, path string, sizeBytes int64) error
	// Events sends the names of workloads that may have changed, until ctx
	// ends; "" when all may have. It is a hint, never the truth.
	Events(ctx context.Context) <-chan string
	// StepMax is the longest that one Prepare, Start or Remove may take, and a
	// Stop beyond its grace.
	StepMax() time.Duration
}

// ID names one instance: a workload at one generation of one object.
type ID struct {
	Name       string
	UID        string // of the object, so that a re-created one never meets the old
	Generation uint64
}

// Instance is a workload resolved to all that a driver needs.
type Instance struct {
	ID
	Image image.Image
	Args  []string // program and its arguments, never empty
	Env   []string // NAME=value, each name once
	// SecretEnv wins over Env. It is on no disk and in no argument list of the
	// capsule's; Prepare gets none.
	SecretEnv []string
	// Files are shown read-only; Prepare gets those in secrets without content.
	Files     []File
	Cwd       string // absolute
	User      string // as in WorkloadSpec; "" is root
	Resources Resources
	Network   Network
	Mounts    []Mount // in the order in which they are made: a folder before those in it
	LogDir    string  // folder that the logger writes to
}

// Resources are limits; zero means none, or the default.
type Resources struct {
	MemoryBytes int64
	CPUMillis   int64 // thousandths of a processor
	PIDs        int64
	DiskBytes   int64 // kept outside of mounts
	IO          IO
}

// IO limits traffic with the capsule's disks in a second.
type IO struct{ ReadBytes, WriteBytes, ReadOperations, WriteOperations int64 }

// Network is where an instance lives, made before it starts.
type Network struct {
	Mode       string // "bridge", "host" or "none"
	NetNS      string // path of its network namespace; "" in mode host
	Hostname   string
	ResolvConf string // file shown as /etc/resolv.conf, rewritten in place
	Hosts      string // file shown as /etc/hosts
}

// Mount is a volume shown in an instance. Prepare gets it without a source: a
// volume may be mounted by an older generation until the start.
type Mount struct {
	Volume string // its name
	// Source is a folder of the capsule, or a block device for an instance with a
	// kernel of its own.
	Source string
	// Folder of the file system on a block device that is shown; "" is its root.
	Folder   string
	Path     string // absolute, in the instance
	ReadOnly bool
}

// File is a small file shown in an instance. What it holds is on no disk of the
// capsule's.
type File struct {
	Path    string // absolute, in the instance
	Content []byte
	Mode    uint32 // permissions, as chmod takes them
	Owner   string // as Instance.User; "" is whom the instance runs as
}

// State of an instance.
type State int

// An instance is prepared, then runs, then has ended.
const (
	Prepared State = iota + 1
	Running
	Ended
)

// Observed is what a driver sees of an instance.
type Observed struct {
	ID
	State       State
	ImageDigest string
	StartedAt   time.Time
	FinishedAt  time.Time
	ExitCode    int    // 128 + signal when killed by one
	OOM         bool   // the last end came from the memory limit
	Note        string // one sentence on how it runs or ended, for the status; may be empty
	Emulated    bool   // it runs, or will run, on an emulated processor
}

// Exec is a command to run in an instance.
type Exec struct {
	Command []string
	Env     []string // added to the instance's
	User    string   // "" is the instance's
	Cwd     string   // "" is the instance's
	TTY     bool
	Size    TerminalSize        // of the terminal before the command starts
	Resize  <-chan TerminalSize // later sizes; may be nil
	Signals <-chan int          // signals for the command; may be nil
	Stdin   io.Reader           // nil reads end of file at once
	Stdout  io.Writer
	Stderr  io.Writer // unused with TTY
}

// Complain writes a line of the capsule's own to the command's stderr.
func (e Exec) Complain(text string) {
	w, end := e.Stderr, "\n"
	if e.TTY {
		w, end = e.Stdout, "\r\n"
	}
	if w != nil {
		_, _ = io.WriteString(w, "capsule: "+text+end)
	}
}

// TerminalSize in character cells.
type TerminalSize struct{ Rows, Columns uint32 }

// Stats is the use of an instance.
type Stats struct {
	MemoryBytes uint64
	CPUTime     time.Duration
	PIDs        uint64
	// Bytes read from the capsule's disks and written to them, by an instance with
	// all that surrounds it; 0 where it has no control group.
	DiskRead, DiskWritten uint64
}
