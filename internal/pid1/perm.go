package pid1

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/disk"
	"capsule/internal/durable"
	"capsule/internal/ext4"
	"capsule/internal/lvm"
)

const (
	grownFile = permDir + "/.grown-to" // the partition's bytes when growing last ended well
	idFile    = permDir + "/machine-id"
)

// openPerm brings /perm up, and creates it on a disk that is provably new. Any
// error is the reason for recovery mode.
func (m *machine) openPerm(ctx context.Context) (created bool, err error) {
	if m.boot.PERM == "" {
		return false, m.fail(fmt.Errorf("the boot disk has no partition %s", disk.PERM))
	}
	if err := lvm.Setup(m.boot.PERM); err != nil { // /perm lies there alone
		return false, m.fail(err)
	}
	content, err := lvm.Inspect(m.boot.PERM)
	if err != nil {
		return false, m.fail(err)
	}
	if created, err = m.preparePerm(ctx, content); err != nil {
		return false, m.fail(err)
	}
	if err := ext4.Check(ctx, lvm.PermDevice); err != nil {
		return false, m.fail(err)
	}
	return created, m.mountPerm(created)
}

// preparePerm makes PermDevice appear.
func (m *machine) preparePerm(ctx context.Context, content lvm.Content) (created bool, err error) {
	switch content {
	case lvm.Unknown:
		return false, errors.New("PERM has neither our data nor our mark of a new disk, and is too large to prove that it's blank")
	case lvm.New, lvm.Blank:
		if !m.medium.creates() {
			return false, errUnsure
		}
		if err := m.createPerm(ctx, content); err != nil {
			return false, fmt.Errorf("initialise PERM: %w", err)
		}
		return true, nil
	}
	m.mendGroup()
	if err := lvm.ActivatePerm(ctx); err != nil {
		return false, fmt.Errorf("open PERM: %w", err)
	}
	return false, nil
}

// mendGroup repairs what a power cut can leave of the volume group's metadata.
// When it can't, lvm has the last word.
func (m *machine) mendGroup() {
	mended, err := lvm.MendMetadata(m.boot.PERM)
	if mended {
		m.log.important("volume group: its last change was cut, back to the one before")
	}
	if err != nil {
		m.log.important("volume group: %v", err)
	}
}

// createPerm uses the whole disk from the start.
func (m *machine) createPerm(ctx context.Context, content lvm.Content) error {
	m.log.important("first start: preparing the disk")
	if content == lvm.Blank {
		if err := lvm.MarkNew(m.boot.PERM); err != nil {
			return err
		}
	}
	if err := m.growPartition(); err != nil {
		m.log.important("grow PERM to the disk's end: %v", err) // the next start tries again
	}
	return lvm.Create(ctx, m.boot.PERM)
}

func (m *machine) growPartition() error {
	d, err := disk.Open(sysfs, m.boot.Disk)
	if err != nil {
		return err
	}
	changed, err := d.GrowPERM()
	if changed {
		m.log.say("PERM now reaches to the end of disk %s", d.Name)
	}
	return err
}

func (m *machine) mountPerm(created bool) error {
	options, err := permOptions()
	if err == nil {
		err = unix.Mount(lvm.PermDevice, permDir, "ext4", unix.MS_NOATIME|unix.MS_NODEV, options)
	}
	if err != nil {
		return m.fail(fmt.Errorf("mount /perm: %w", err))
	}
	if err := makeFolders(permDir); err != nil {
		_ = unix.Unmount(permDir, 0) // recovery mode writes nothing
		return m.fail(err)
	}
	if created {
		return m.noteGrown()
	}
	return nil
}

// permOptions keep what is reserved of /perm for the capsule's own programs. The user
// to whom ext4 leaves it is one that nobody is: root is whoever writes in a container.
// Folders can be bounded where the file system was made for that.
func permOptions() (string, error) {
	s, err := ext4.ReadSuper(lvm.PermDevice)
	if err != nil {
		return "", err
	}
	options := "errors=remount-ro,discard,resuid=4294967294"
	if s.Projects {
		options += "," + ext4.ProjectOption
	}
	return options, nil
}

// makeFolders makes what the services expect. Temporary files of an earlier run
// are of no use to anybody.
func makeFolders(perm string) error {
	if err := os.RemoveAll(filepath.Join(perm, "tmp")); err != nil {
		return err
	}
	for dir, mode := range map[string]os.FileMode{
		"containerd": 0o711, "logs": 0o755, "logs/system": 0o755, "identity": 0o700, "tmp": 0o700,
	} {
		if err := os.MkdirAll(filepath.Join(perm, dir), mode); err != nil {
			return err
		}
	}
	return nil
}

const (
	lateMax   = 10 * time.Second // for a disk of the group to appear
	lateEvery = 500 * time.Millisecond
)

// findDisks has lvm use the other disks of the group too, which nobody waits for but
// the pool. Serve goes on to look for what is missing, and says so.
func (m *machine) findDisks() (whole bool, err error) {
	var parts lvm.Parts
	for begin := time.Now(); ; time.Sleep(lateEvery) {
		var devices []string
		for _, d := range disk.Devices(sysfs) {
			if d.Name != m.boot.Disk {
				devices = append(devices, d.Path())
			}
		}
		if parts, err = lvm.Assemble(m.boot.PERM, devices); err != nil {
			return false, err
		}
		if len(parts.Missing) == 0 || time.Since(begin) > lateMax {
			break
		}
	}
	whole = len(parts.Missing) == 0
	if len(parts.Found) == 0 {
		return whole, nil
	}
	for _, device := range parts.Found {
		if _, err := lvm.MendMetadata(device); err != nil {
			m.log.important("volume group: %v", err)
		}
	}
	if m.modules != nil { // what was being moved when the machine went down can't be opened without
		err = m.modules.Load("dm_mirror")
	}
	return whole, errors.Join(err, lvm.Setup(append([]string{m.boot.PERM}, slices.Sorted(maps.Values(parts.Found))...)...))
}

// activatePool opens all volumes. One that stays closed is a half-created one,
// which its owner finds and removes.
func (m *machine) activatePool(ctx context.Context) error {
	begin := time.Now()
	look, err := lvm.Activate(ctx)
	if look {
		m.log.important("volumes: some stayed inactive")
	}
	if err == nil {
		m.log.say("volumes active after %v", time.Since(begin).Round(time.Millisecond))
	}
	return err
}

// growStorage uses a disk that has become larger. It's over in no time when the
// partition has the size at which it last ended well.
func (m *machine) growStorage(ctx context.Context) error {
	if err := m.growPartition(); err != nil {
		return err
	}
	size, err := m.permBytes()
	if err != nil {
		return err
	}
	if b, err := os.ReadFile(grownFile); err == nil && strings.TrimSpace(string(b)) == strconv.FormatInt(size, 10) {
		return nil
	}
	begin := time.Now()
	if err := lvm.Grow(ctx, permDir, m.boot.PERM); err != nil {
		return err
	}
	m.log.say("storage uses %d MiB of the disk, after %v", size>>20, time.Since(begin).Round(time.Millisecond))
	return m.noteGrown()
}

func (m *machine) noteGrown() error {
	size, err := m.permBytes()
	if err != nil {
		return err
	}
	return durable.WriteFile(grownFile, []byte(strconv.FormatInt(size, 10)+"\n"), 0o644)
}

func (m *machine) permBytes() (int64, error) {
	b, err := os.ReadFile(filepath.Join(sysfs, "class/block", filepath.Base(m.boot.PERM), "size"))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return sectors * 512, err
}

// nameHost gives the machine its name, from an id that's made once.
func (m *machine) nameHost() error {
	name := "capsule" // without /perm, or an id
	id, err := "", error(nil)
	if file := m.idFile(); file != "" {
		if file == idFile {
			err = m.takeID() // else a new one, and the machine has another name
		}
		var failed error
		if id, failed = machineID(file); failed == nil {
			name = HostName(id)
		}
		err = errors.Join(err, failed)
	}
	return errors.Join(err, unix.Sethostname([]byte(name)))
}

// idFile is where the id is kept in this mode; "" where it can't be known.
func (m *machine) idFile() string {
	switch {
	case m.installer:
		return ramIDFile
	case m.reason == "":
		return idFile
	}
	return ""
}

// HostName is the name of the machine with an id of our form, as it comes.
func HostName(id string) string { return "capsule-" + id[:4] }

// machineID reads the id, or makes it.
func machineID(file string) (string, error) {
	b, err := os.ReadFile(file)
	if id := word(b); err == nil && validID(id) {
		return id, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("machine id: %w", err)
	}
	if err == nil && word(b) != "" {
		return "", fmt.Errorf("machine id in %q isn't one: %w", file, errdefs.ErrDataLoss)
	}
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	id := hex.EncodeToString(raw)
	return id, durable.WriteFile(file, []byte(id+"\n"), 0o644)
}

func word(b []byte) string { return strings.TrimSpace(string(b)) }

func validID(id string) bool {
	raw, err := hex.DecodeString(id)
	return err == nil && len(raw) == 16
}
