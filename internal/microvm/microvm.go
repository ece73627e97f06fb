// Package microvm is the workload driver for microVMs: a QEMU in a jail for each
// instance, with a kernel of its own in which process 1, the agent
// (internal/guest), runs the payload.
//
// An instance is a record in containerd, as a container is, but without a task.
// Its record refers to a read-only view of the image, whose layers the guest gets
// as one disk, file by file; what it writes goes to a sparse disk of its own that
// lives as long as the instance. How it ended is written to the record:
//
//	Prepare ──▶ Prepared ──Start──▶ Running ──end, Stop──▶ Ended
//	                                   ▲                     │
//	                                   └────────Start────────┘
//
// A QEMU belongs to no daemon. It holds a lock on a file of the instance's run
// folder for as long as it lives, so that there is never a second one, and a new
// daemon that meets a held lock takes the machine over: by its pidfd, its QMP
// socket, and the line to its agent. Each running machine has one goroutine that
// sees it to its end (vm.watch):
//
//	payload ends ─▶ agent writes out all disks, keeps the result until asked
//	             ─▶ the record is written ─▶ power off ─▶ run folder removed
//	QEMU ends    ─▶ the record is written: 137, and why ─▶ run folder removed
//
// Nothing that a guest says is trusted: see untrusted.go.
package microvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"

	"capsule/internal/instance"
	"capsule/internal/workload"
)

// Channels to the agent.
const (
	VSock = "vsock"
	Port  = "port" // a virtio-serial port, where the machine has no vhost-vsock
)

// Options of a Driver; empty fields get the defaults of our machine.
type Options struct {
	Dir         string // of writable disks, default /perm/microvms
	RunDir      string // of locks and sockets, default /run/capsule/microvms
	Cgroup      string // parent of the machines' cgroups, default /capsule/apps; "-" is none
	LogCgroup   string // cgroup of loggers, default /capsule/shims; "-" is none
	Root        string // tree whose /usr holds QEMU and what it loads, default /
	QEMU        string // path in Root, default /usr/bin/qemu-system-x86_64
	Kernel      string // default /usr/lib/capsule/guest/vmlinux
	Initramfs   string // default /usr/lib/capsule/guest/initramfs
	Logger      string // program that writes logs, default /usr/bin/capsule-log
	Channel     string // VSock or Port, default VSock
	Snapshotter string // default erofs
	// Emulated says why processors are emulated; "" when KVM works.
	Emulated string
	// Nested tells that the machine below is emulated itself.
	Nested bool
}

// Driver runs microVMs.
type Driver struct {
	records *instance.Records
	client  *containerd.Client
	opts    Options
	pace    pace
	life    context.Context // ends with Close
	end     context.CancelFunc
	watches sync.WaitGroup

	loaded    atomic.Bool // the kernel's modules
	swept     sync.Once
	numbering sync.Mutex // held from the choice of a number to its record

	mu    sync.Mutex
	vms   map[string]*vm // that run, by record
	hints map[chan string]bool
}

var _ workload.Driver = (*Driver)(nil)

// New returns a driver that uses the client, whose default namespace holds the
// records.
func New(client *containerd.Client, opts Options) *Driver {
	setDefault(&opts.Dir, "/perm/microvms")
	setDefault(&opts.RunDir, "/run/capsule/microvms")
	setDefault(&opts.Cgroup, "/capsule/apps")
	setDefault(&opts.LogCgroup, "/capsule/shims")
	setDefault(&opts.Root, "/")
	setDefault(&opts.QEMU, qemuProgram)
	setDefault(&opts.Kernel, "/usr/lib/capsule/guest/vmlinux")
	setDefault(&opts.Initramfs, "/usr/lib/capsule/guest/initramfs")
	setDefault(&opts.Logger, "/usr/bin/capsule-log")
	setDefault(&opts.Channel, VSock)
	for _, cgroup := range []*string{&opts.Cgroup, &opts.LogCgroup} {
		if *cgroup == "-" {
			*cgroup = ""
		}
	}
	d := &Driver{
		records: instance.Open(client, instance.MicroVM, opts.Snapshotter),
		client:  client,
		opts:    opts,
		pace:    paceOf(opts),
		vms:     map[string]*vm{},
		hints:   map[chan string]bool{},
	}
	d.life, d.end = context.WithCancel(context.Background())
	return d
}

func setDefault(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

// Close lets go of all machines, which run on until another driver finds them.
func (d *Driver) Close() {
	d.end()
	d.watches.Wait()
}

// processors that a machine may have.
func processors() int { return runtime.NumCPU() }

// running finds the machine of an instance that runs.
func (d *Driver) running(ctx context.Context, id workload.ID) (*vm, error) {
	c, err := d.records.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	m, err := d.find(c)
	if err != nil {
		return nil, fmt.Errorf("load workload %q: %w", id.Name, err)
	}
	if m == nil || m.over() {
		return nil, fmt.Errorf("workload %q is not running: %w", id.Name, errdefs.ErrFailedPrecondition)
	}
	return m, nil
}

// answering is running for who needs the guest at once: just after the daemon's
// start, and in a slow guest, the line to it takes a while.
func (d *Driver) answering(ctx context.Context, id workload.ID) (*vm, error) {
	m, err := d.running(ctx, id)
	if err != nil {
		return nil, err
	}
	if _, err := m.agent.state(ctx, d.pace.call); err != nil && !m.over() {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		slog.Warn("a guest does not answer", "workload", id.Name, "limit", d.pace.call, "error", err)
		return nil, fmt.Errorf("workload %q: its guest did not answer within %v; \"capsulectl workload logs --serial %s\" has what its kernel said: %w",
			id.Name, d.pace.call, id.Name, errdefs.ErrUnavailable)
	}
	return m, nil
}

// current is the machine of a record that this driver knows.
func (d *Driver) current(record string) *vm {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.vms[record]
}

// enter takes up the care of a machine.
func (d *Driver) enter(m *vm) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.life.Err() != nil {
		return errors.New("the driver was closed")
	}
	d.vms[m.record] = m
	d.watches.Go(m.watch)
	return nil
}

func (d *Driver) leave(m *vm) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.vms[m.record] == m {
		delete(d.vms, m.record)
	}
}
