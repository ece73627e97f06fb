// Package plan is what the recording side of the power cut test tells the
// program that checks the cut disks, and what that answers.
package plan

import "capsule/internal/blocklog"

// Serials of the disks of the machine that checks.
const (
	SerialBase = "base" // what the disk was before the first write
	SerialLog  = "log"  // blocklog of all writes
	SerialPlan = "plan" // the Plan as JSON, padded with spaces
)

// ResultMark precedes each Result, as JSON, on a line of the output.
const ResultMark = "POWERCUT "

// A Plan is the work of one checking machine.
type Plan struct {
	// LogBytes of the log's disk are the log.
	LogBytes int64 `json:"log_bytes"`
	// Disks are the sizes that the disk had.
	Disks []Disk `json:"disks"`
	// Deep checks every file system in full, and volumes after updates, too.
	Deep bool `json:"deep,omitempty"`
	// Systems are the versions between which the recording updates, and UpdatesFrom
	// is the first log entry of that; none when it doesn't.
	Systems     []System       `json:"systems,omitempty"`
	UpdatesFrom int            `json:"updates_from,omitempty"`
	Cuts        []blocklog.Cut `json:"cuts"` // by their base
	Facts       []Fact         `json:"facts"`
}

// Updates tells whether a cut is at the updates.
func (p Plan) Updates(c blocklog.Cut) bool { return len(p.Systems) > 0 && c.N >= p.UpdatesFrom }

// A System is what a version is made of.
type System struct {
	Version string `json:"version"`
	UKI     string `json:"uki"` // SHA-256, hexadecimal
}

// A Disk had so many bytes from then on.
type Disk struct {
	From  int   `json:"from"`
	Bytes int64 `json:"bytes"`
}

// DiskBytes is how large the disk was after n log entries.
func (p Plan) DiskBytes(n int) (size int64) {
	for _, d := range p.Disks {
		if d.From <= n {
			size = d.Bytes
		}
	}
	return size
}

// What the pushed image has at the path at which the volume is mounted.
const (
	MountPath  = "/srv"
	SeedFile   = "seed"
	SeedText   = "from the image\n"
	SeedOwner  = 1000 // user and group
	SeedMode   = 0o640
	FolderMode = 0o750
)

// App is the workload that mounts the volume Photos in the recording.
const (
	App    = "app"
	Photos = "photos"
)

// A Fact must hold after every cut from From to Until log entries. Exactly one
// of its parts is set.
type Fact struct {
	From  int    `json:"from"`
	Until int    `json:"until"` // 0 is for ever
	Said  string `json:"said"`  // by which operation

	Object    *Object   `json:"object,omitempty"`
	Content   *Content  `json:"content,omitempty"`
	Snapshot  *Snapshot `json:"snapshot,omitempty"`
	PoolBytes int64     `json:"pool_bytes,omitempty"` // the least size of the pool
	File      string    `json:"file,omitempty"`       // below /perm, that isn't empty
	Image     string    `json:"image,omitempty"`      // in the image store, with all layers whole
	Starts    *Starts   `json:"starts,omitempty"`
	Keeps     string    `json:"keeps,omitempty"` // version that can be started
}

// NeedsVolumes tells whether the volumes must be there to look.
func (f Fact) NeedsVolumes() bool {
	return f.Content != nil || f.Snapshot != nil || f.PoolBytes > 0 || f.Object != nil && f.Object.SizeBytes > 0
}

// Starts is the version that the boot loader starts.
type Starts struct {
	Version   string `json:"version"`
	Confirmed bool   `json:"confirmed,omitempty"` // for good: its tries aren't counted
}

// An Object is there with this spec, or gone.
type Object struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Gone bool   `json:"gone,omitempty"`
	// Env is part of a workload's spec.
	Env map[string]string `json:"env,omitempty"`
	// SizeBytes is the least size of a volume and of its file system.
	SizeBytes int64 `json:"size_bytes,omitempty"`
}

// A Content is a file of a volume, or of a snapshot of it.
type Content struct {
	Volume   string `json:"volume"`
	Snapshot string `json:"snapshot,omitempty"`
	Path     string `json:"path"` // below the root that workloads see
	SHA256   string `json:"sha256,omitempty"`
	Gone     bool   `json:"gone,omitempty"`
	// Owner and mode as "UID:GID 0640"; empty is any.
	Owner string `json:"owner,omitempty"`
}

// A Snapshot of a volume is there, or gone.
type Snapshot struct {
	Volume string `json:"volume"`
	Name   string `json:"name"`
	Gone   bool   `json:"gone,omitempty"`
}

// Holds tells whether the fact must hold after a cut.
func (f Fact) Holds(n int) bool { return n >= f.From && (f.Until == 0 || n <= f.Until) }

// A Result of one cut.
type Result struct {
	Cut     blocklog.Cut `json:"cut"`
	Stage   string       `json:"stage"`             // how far the machine had come: "new", "unfinished", "used"
	Problem string       `json:"problem,omitempty"` // empty when all holds
	Facts   int          `json:"facts"`             // that were checked
	Millis  int64        `json:"millis"`
}
