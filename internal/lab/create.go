//go:build unix

package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/contexts"
	"capsule/internal/qemu"
)

// maxCPUs by default; more gain nothing and starve this machine.
const maxCPUs = 4

// socketPathMax leaves room in sun_path (104 bytes on the shortest system).
const socketPathMax = 80

// Create makes a machine's folder: a copy of the image, seeded with a CA of
// its own, the operator's keys and the choice of ports. It starts nothing.
func Create(ctx context.Context, o Options) (*Machine, error) {
	m, err := o.machine(ctx)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(m.Dir), 0o700); err != nil {
		return nil, fmt.Errorf("make lab machine %q: %w", m.Name, err)
	}
	if err := os.Mkdir(m.Dir, 0o700); os.IsExist(err) {
		return nil, fmt.Errorf("lab machine %q exists already: %w", m.Name, errdefs.ErrAlreadyExists)
	} else if err != nil {
		return nil, fmt.Errorf("make lab machine %q: %w", m.Name, err)
	}
	if err := m.furnish(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("make lab machine %q: %w", m.Name, err), os.RemoveAll(m.Dir), m.removeSockets())
	}
	return m, nil
}

// machine fills in the defaults and checks what can be checked beforehand.
func (o Options) machine(ctx context.Context) (*Machine, error) {
	root, err := stateDir(o.Dir)
	if err != nil {
		return nil, err
	}
	m := &Machine{
		Name: o.name(), Dir: filepath.Join(root, o.name()), MemoryBytes: o.MemoryBytes, CPUs: o.CPUs,
		ICount: o.ICount, Restrict: o.Restrict, Tap: o.Tap, DiskCache: o.DiskCache, Record: o.Record, Args: o.Args, Stick: o.Stick,
		readyMax: o.ReadyMax, progress: o.Progress,
	}
	if !nameForm.MatchString(m.Name) {
		return nil, fmt.Errorf("machine name %q: lower-case letters, digits and \"-\", at most 40: %w", m.Name, errdefs.ErrInvalidArgument)
	}
	if _, err := os.Stat(m.path("machine.json")); err == nil {
		return nil, fmt.Errorf("lab machine %q exists already: %w", m.Name, errdefs.ErrAlreadyExists)
	}
	if m.MemoryBytes == 0 {
		m.MemoryBytes = defaultMemory
	}
	if m.MemoryBytes < minMemory {
		return nil, fmt.Errorf("memory of %d MiB: a capsule needs %d MiB: %w", m.MemoryBytes>>20, minMemory>>20, errdefs.ErrInvalidArgument)
	}
	if m.CPUs == 0 {
		m.CPUs = min(runtime.NumCPU(), maxCPUs)
	}
	if o.Stick {
		m.BlockBytes = cmp.Or(o.BlockBytes, sectorBytes)
	}
	if m.DiskCache == "" {
		m.DiskCache = "writeback"
	}
	ports, err := fix(append([]Publish{{Port: capsulePort, Protocol: "tcp"}}, o.Publish...))
	if err != nil {
		return nil, err
	}
	m.API, m.Publish = net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0].HostPort)), ports[1:]
	return m, m.chooseAccel(ctx, o.Accel)
}

func (m *Machine) chooseAccel(ctx context.Context, wanted string) error {
	program, err := findQEMU()
	if err != nil {
		return err
	}
	switch wanted {
	case "tcg":
		m.Accel, m.AccelReason = "tcg", "asked for"
	case "kvm", "":
		m.Accel = "kvm"
		if m.ICount != "" {
			m.Accel, m.AccelReason = "tcg", "icount needs it"
		} else if err := qemu.Probe(ctx, program); err != nil {
			m.Accel, m.AccelReason = "tcg", "no KVM: "+err.Error()
		}
		if wanted == "kvm" && m.Accel != "kvm" {
			return fmt.Errorf("use KVM: %s: %w", m.AccelReason, errdefs.ErrFailedPrecondition)
		}
	default:
		return fmt.Errorf("acceleration %q: want \"kvm\" or \"tcg\": %w", wanted, errdefs.ErrInvalidArgument)
	}
	return nil
}

// furnish fills a new machine's folder; machine.json comes last and makes it one.
func (m *Machine) furnish(ctx context.Context, o Options) error {
	image, code, variables, err := o.sources()
	if err != nil {
		return err
	}
	m.say("copy %s", image)
	m.Firmware = code
	if err := copySparse(ctx, m.path("variables.fd"), variables); err != nil {
		return err
	}
	if err := m.furnishDisks(ctx, o, image); err != nil {
		return err
	}
	if m.Record {
		if err := m.startRecord(ctx); err != nil {
			return err
		}
	}
	if err := m.pickSockets(); err != nil {
		return err
	}
	return m.save()
}

// furnishDisks gives the machine a disk with a capsule and who is let in; or a stick
// and a disk with nothing, and nobody knows the capsule that is to be.
func (m *Machine) furnishDisks(ctx context.Context, o Options, image string) error {
	if m.Stick {
		return errors.Join(copySparse(ctx, m.StickImage(), image), os.WriteFile(m.Disk(), nil, 0o600), growDisk(m.Disk(), o.DiskBytes))
	}
	if err := copySparse(ctx, m.Disk(), image); err != nil {
		return err
	}
	if err := growDisk(m.Disk(), o.DiskBytes); err != nil {
		return err
	}
	seed, err := m.writeKeys()
	if err != nil {
		return err
	}
	return seedESP(m.Disk(), seed)
}

func (m *Machine) save() error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	path := m.path("machine.json")
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// pickSockets avoids paths that a unix address has no room for.
func (m *Machine) pickSockets() (err error) {
	m.Sockets = m.Dir
	if len(m.Dir) > socketPathMax {
		m.Sockets, err = os.MkdirTemp("", "capsule-lab-")
	}
	return err
}

func (m *Machine) removeSockets() error {
	if m.Sockets == "" || m.Sockets == m.Dir {
		return nil
	}
	return os.RemoveAll(m.Sockets)
}

func (m *Machine) socket(name string) string { return filepath.Join(m.Sockets, name+".sock") }

func growDisk(path string, size int64) error {
	if size == 0 {
		size = defaultDisk
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if size < info.Size() {
		return fmt.Errorf("disk of %d MiB: the image alone has %d MiB: %w", size>>20, info.Size()>>20, errdefs.ErrInvalidArgument)
	}
	return os.Truncate(path, size)
}

// copySparse copies a file without filling its holes.
func copySparse(ctx context.Context, to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(copyExtents(ctx, out, in, info.Size()), out.Truncate(info.Size()), out.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}

func copyExtents(ctx context.Context, out, in *os.File, size int64) error {
	for at := int64(0); at < size; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		data, err := in.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			return nil
		}
		if err != nil { // a file system without holes
			data = at
		}
		hole, err := in.Seek(data, unix.SEEK_HOLE)
		if err != nil || hole <= data {
			hole = size
		}
		if _, err := in.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, hole-data); err != nil {
			return err
		}
		at = hole
	}
	return nil
}

// capsulePort is where the API listens inside.
const capsulePort = contexts.Port
