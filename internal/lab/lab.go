//go:build unix

// Package lab boots capsules in QEMU on this machine: for trying Capsule
// without hardware, and for the tests of whole machines. Each machine has one
// folder with its disk, its firmware's variables, its console's log and what
// an operator needs to reach it. QEMU outlives the program that started it.
//
// It never opens a port on anything but loopback, and never touches another
// image than its own copy.
package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/contexts"
)

// Bounds and defaults of a machine.
const (
	defaultName   = "lab"
	defaultMemory = 1 << 30
	defaultDisk   = 8 << 30
	minMemory     = 256 << 20

	readyMax    = 10 * time.Minute // from power on to a ready API, under emulation
	shutdownMax = 100 * time.Second
	killMax     = time.Minute
)

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`)

// Options of a new machine. Zero values are defaults.
type Options struct {
	Name        string    // "lab"
	Image       string    // disk image, "build/capsule.img"
	MemoryBytes int64     // 1 GiB
	CPUs        int       // those of this machine, at most 4
	DiskBytes   int64     // 8 GiB; the capsule grows into it
	Publish     []Publish // ports of this machine that lead into the capsule
	Dir         string    // folder of all machines; the user's state folder
	Firmware    string    // OVMF code; beside the image, else the system's
	Variables   string    // OVMF variables, copied
	Accel       string    // "kvm" or "tcg"; "" is KVM where a guest runs on it
	ICount      string    // QEMU's -icount, for times that repeat; needs TCG
	Restrict    bool      // no way out of the machine's network
	Tap         string    // a tap of this machine instead of QEMU's network: nothing leads into it from loopback
	DiskCache   string    // QEMU's cache mode, "writeback"; flushes are honoured
	Stick       bool      // the image is a USB stick, without a seed, and the disk an empty NVMe
	BlockBytes  int       // of that disk, 512
	Record      bool      // keep all writes to the disk in WriteLog, and in BaseDisk what it was before
	Args        []string  // further QEMU arguments
	ReadyMax    time.Duration
	Progress    func(Step) // told what happens; may be nil
}

// Step is one thing that Up did or a line that the console showed.
type Step struct {
	Text    string
	Console bool
}

// Machine is one lab capsule. Its exported fields are kept in machine.json.
type Machine struct {
	Name        string    `json:"name"`
	Dir         string    `json:"dir"`
	API         string    `json:"api"` // host:port on loopback
	MemoryBytes int64     `json:"memory_bytes"`
	CPUs        int       `json:"cpus"`
	Publish     []Publish `json:"publish,omitempty"`
	Firmware    string    `json:"firmware"`
	Accel       string    `json:"accel"`
	AccelReason string    `json:"accel_reason,omitempty"` // why not KVM
	ICount      string    `json:"icount,omitempty"`
	Restrict    bool      `json:"restrict,omitempty"`
	Tap         string    `json:"tap,omitempty"`
	DiskCache   string    `json:"disk_cache"`
	// Stick: the USB stick is plugged in.
	Stick bool `json:"stick,omitempty"`
	// BlockBytes of an NVMe disk; 0: the disk is of virtio.
	BlockBytes int      `json:"block_bytes,omitempty"`
	Record     bool     `json:"record,omitempty"`
	Args       []string `json:"args,omitempty"`
	Sockets    string   `json:"sockets"` // folder of short-named sockets

	readyMax time.Duration
	progress func(Step)
}

// Up makes a machine, starts it and waits until its API answers. A machine
// that was made before under that name is started again as it was made.
func Up(ctx context.Context, o Options) (*Machine, error) {
	m, err := Create(ctx, o)
	if errdefs.IsAlreadyExists(err) {
		if m, err = Attach(o.Dir, o.name()); err == nil {
			m.progress, m.readyMax = o.Progress, o.ReadyMax
			m.say("machine %q exists", m.Name)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := m.Start(ctx); err != nil {
		return m, err
	}
	return m, m.WaitReady(ctx)
}

func (o Options) name() string {
	if o.Name == "" {
		return defaultName
	}
	return o.Name
}

// Attach finds a machine that was made before. dir is Options.Dir.
func Attach(dir, name string) (*Machine, error) {
	root, err := stateDir(dir)
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = defaultName
	}
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("machine name %q: lower-case letters, digits and \"-\", at most 40: %w", name, errdefs.ErrInvalidArgument)
	}
	data, err := os.ReadFile(filepath.Join(root, name, "machine.json"))
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("lab machine %q does not exist: %w", name, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read lab machine %q: %w", name, err)
	}
	m := &Machine{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("read lab machine %q: %w", name, err)
	}
	return m, nil
}

// List gives all machines, running or not, by name.
func List(dir string) ([]*Machine, error) {
	root, err := stateDir(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(root)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list lab machines: %w", err)
	}
	var all []*Machine
	for _, e := range entries {
		if m, err := Attach(root, e.Name()); err == nil {
			all = append(all, m)
		}
	}
	slices.SortFunc(all, func(a, b *Machine) int { return compare(a.Name, b.Name) })
	return all, nil
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Context is how an operator reaches the machine.
func (m *Machine) Context() (contexts.Context, error) {
	c := contexts.Context{Name: m.Name, Host: m.API}
	for name, into := range map[string]*string{"ca.pem": &c.CA, "operator.pem": &c.Certificate, "operator.key": &c.Key} {
		data, err := os.ReadFile(m.path(name))
		if err != nil {
			return c, fmt.Errorf("keys of lab machine %q: %w", m.Name, err)
		}
		*into = string(data)
	}
	return c, nil
}

// ConsoleLog is the file with all that the machine's serial port showed.
func (m *Machine) ConsoleLog() string { return m.path("console.log") }

// StickImage is what is plugged in of a machine that is to be installed.
func (m *Machine) StickImage() string { return m.path("stick.img") }

// Plug puts the stick in, or pulls it out, from the next start on.
func (m *Machine) Plug(in bool) error {
	m.Stick = in
	return m.save()
}

// Disk is the machine's disk, a raw sparse file.
func (m *Machine) Disk() string { return m.path("disk.img") }

func (m *Machine) path(name string) string { return filepath.Join(m.Dir, name) }

func (m *Machine) say(format string, args ...any) {
	if m.progress != nil {
		m.progress(Step{Text: fmt.Sprintf(format, args...)})
	}
}

func stateDir(dir string) (string, error) {
	if dir != "" {
		return filepath.Abs(dir)
	}
	base := os.Getenv("XDG_STATE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find the folder of lab machines: %w", err)
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "capsule", "lab"), nil
}

// Tell sets who is told what happens to an attached machine.
func (m *Machine) Tell(progress func(Step)) { m.progress = progress }
