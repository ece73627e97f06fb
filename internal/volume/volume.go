// Package volume owns what outlives workloads: volumes, their snapshots, and
// who may mount them. A volume is a thin logical volume with ext4, whose folder
// data is what workloads see. It formats only what it has just created, and
// removes only logical volumes that its own records name.
//
//		apply ──▶ (object) ──▶ intent ──lvcreate──▶ intent + LV ──mkfs──▶ record: fresh
//		             ▲                                                     │ first mount
//		             │ lvremove at start, then again                       ▼
//		             └───────────── power cut ◀─── any arrow ───   data.new ──rename──▶ data
//
//		record ──claim──▶ claimed ──mount──▶ mounted ──release──▶ record
//		record ──delete──▶ intent (record gone) ──lvremove──▶ nothing
//
//		awaited, after a restore ──▶ intent ──lvcreate, data──▶ record
//
//	  - intent: the store names a logical volume that is being made or removed.
//	    Whatever it is when the machine starts, it is removed then.
//	  - record: the logical volume is whole, and is this volume. It is made of an
//	    intent in one transaction.
//	  - claimed: workloads that may mount it. Claims are kept in the record, so
//	    they hold when the daemon is killed and when power is cut.
//	  - mounted: by the capsule for containers, or given as a device to one
//	    microVM. That is not recorded: the kernel knows, and lets only one of
//	    the two have the device.
//
// Logical volumes without intent and record are never touched.
package volume

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/image"
	"capsule/internal/reconcile"
	"capsule/internal/store"
)

// Guests are the running workloads, as volumes need them.
type Guests interface {
	// Freeze writes out what a workload's own kernel keeps of its volumes and
	// holds writes to them until thaw is called, at most for limit.
	Freeze(ctx context.Context, workload string, limit time.Duration) (thaw func(), err error)
	// Grown has a running workload use all of a volume that has become sizeBytes
	// large.
	Grown(ctx context.Context, workload, volume string, sizeBytes int64) error
	// Hold stops a workload because of a volume. It starts again by itself.
	Hold(ctx context.Context, workload, reason string) error
}

// Content shows what is in images.
type Content interface {
	View(ctx context.Context, img image.Image, look func(root string) error) error
}

// Options are the parts that a manager brings together; all but Guests, which
// SetGuests gives, are needed.
type Options struct {
	Store   *store.Store
	Guests  Guests
	Content Content
	// Freed is called when something that a workload waited for at that volume
	// may have changed.
	Freed func(volume string)
	Log   *slog.Logger // default slog.Default()
}

// Dir holds a folder for each volume that the capsule itself has mounted.
const Dir = "/run/capsule/volumes"

// Manager makes volumes be as declared, and lends them to workloads.
type Manager struct {
	opts   Options
	log    *slog.Logger
	dir    string
	bucket *store.Bucket
	queue  *reconcile.Queue
	locks  locks

	limits atomic.Pointer[Limits] // of the pool

	schedules  *reconcile.Queue // of volumes, for their snapshots
	guard      guard
	exports    counts // of logical volumes, while they are read
	complaints counts // of volumes whose schedule can't be kept
	arriving   counts // of volumes that are being imported

	trouble marks[string] // why a volume could not be mounted at the last try
	grown   marks[bool]   // volumes whose file system is known to fill its device
	// busy are volumes that a workload waits for though nobody has claimed them:
	// the kernel has not given the device back yet. The loop looks for the moment
	// when it has.
	busy marks[bool]

	// writing makes reading what is known, deciding on it and writing that to
	// the store one step. No lvm command runs under it.
	writing sync.Mutex

	recovering sync.Mutex // makes Recover run once at a time

	mu        sync.Mutex
	guests    Guests
	recovered bool            // state is read, and nothing half-made is left
	state     state           // as in the store
	underway  map[string]bool // logical volumes whose intent somebody works on
}

// New makes a manager; Recover makes it usable, Run makes it work.
func New(opts Options) *Manager {
	m := &Manager{
		opts: opts, log: opts.Log, dir: Dir, bucket: opts.Store.Bucket(bucketName), guests: opts.Guests,
		underway: map[string]bool{},
	}
	if m.log == nil {
		m.log = slog.Default()
	}
	m.SetLimits(DefaultLimits)
	m.queue = reconcile.New(reconcile.Options{Keys: m.keys}, m.reconcile)
	m.schedules = reconcile.New(scheduling(m.keys), m.keepSchedule)
	return m
}

// usable tells whether what is kept of volumes is known.
func (m *Manager) usable() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.recovered {
		return fmt.Errorf("volumes are not ready yet: %w", errdefs.ErrUnavailable)
	}
	return nil
}

// Wake has a volume looked at soon.
func (m *Manager) Wake(name string) { m.queue.Wake(name) }

// SetGuests gives the workloads, which need the manager themselves.
func (m *Manager) SetGuests(g Guests) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.guests = g
}

func (m *Manager) running() Guests {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guests
}

// freed tells those who wait for a volume.
func (m *Manager) freed(volume string) {
	if m.opts.Freed != nil {
		m.opts.Freed(volume)
	}
}

// Claimant is a workload that mounts volumes.
type Claimant struct {
	Workload string
	VM       bool // with a kernel of its own
}

// Mounted is one mount of a workload, with what to show in it.
type Mounted struct {
	Volume string
	// Source is a folder, or a block device for a workload with a kernel of its
	// own.
	Source   string
	Folder   string // of the file system on a device; "" for a folder
	Path     string // absolute, in the workload
	ReadOnly bool
}

// dataDir is the folder of a volume's file system that workloads see.
const dataDir = "data"
