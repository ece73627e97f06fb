package storage

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"capsule/internal/disk"
	"capsule/internal/installer"
	"capsule/internal/lvm"
)

// A Use is what a disk is for.
type Use int

// What a disk is for.
const (
	Unused Use = iota
	System     // the system, /perm, and a part of the pool
	Pool       // a part of the pool
)

// A State of a disk.
type State int

// How a disk fares.
const (
	OK State = iota
	Joining
	Leaving
	Missing
)

// A Disk is one of the machine, or one that is missing.
type Disk struct {
	installer.Candidate
	Use     Use
	State   State
	Message string // what is wrong or under way; "" when nothing is
	Unfit   string // why it can't join; "" when it can

	PoolBytes, UsedBytes    int64 // of the group, and of that of volumes
	MovedBytes, MovingBytes int64
	Since                   time.Time // when its change was begun
}

// stallMax is how long moving may get no further before that is told: a disk that fails
// answers late, or not at all.
const stallMax = 10 * time.Minute

// List tells of all disks, and of those that are missing. Disks are read for it.
func (m *Manager) List(ctx context.Context) ([]Disk, error) {
	candidates := m.survey.Disks()
	parts, err := lvm.Physicals(ctx)
	if err != nil && len(m.Missing()) == 0 {
		return nil, err
	}
	byID := map[string]lvm.Physical{}
	for _, p := range parts {
		byID[p.ID] = p
	}
	var list []Disk
	for _, c := range candidates {
		list = append(list, Disk{Candidate: c, Unfit: m.unfit(c)})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range list {
		m.describe(&list[i], byID)
	}
	for _, id := range m.missing {
		d := Disk{Candidate: installer.Candidate{Device: m.known[id].device()}, Use: Pool, State: Missing, Message: missingText(m.known[id])}
		d.PoolBytes, d.UsedBytes = byID[id].SizeBytes, byID[id].UsedBytes()
		list = append(list, d)
	}
	slices.SortStableFunc(list, func(a, b Disk) int { return cmp.Compare(b.State, a.State) }) // needs first
	return list, nil
}

// describe says what a disk is used for.
func (m *Manager) describe(d *Disk, parts map[string]lvm.Physical) {
	id := ""
	for part, found := range m.found {
		if found.Name == d.Name {
			id = part
		}
	}
	switch {
	case d.Booted:
		d.Use, d.Unfit, id = System, "", m.home
	case id != "":
		d.Use, d.Unfit = Pool, ""
	}
	d.PoolBytes, d.UsedBytes = parts[id].SizeBytes, parts[id].UsedBytes()
	if gained := parts[id].DeviceBytes - d.PoolBytes; id != "" && gained >= growMin {
		d.Message = fmt.Sprintf("%d MiB of it are not used yet: \"capsulectl capsule disk grow\" takes them", gained>>20)
	}
	m.describeChange(d, id)
}

// describeChange adds what is being done with a disk.
func (m *Manager) describeChange(d *Disk, id string) {
	c := m.change
	switch {
	case c == nil:
		return
	case id != "" && id == c.Old && !c.Kept:
		d.State, d.MovedBytes, d.MovingBytes = Leaving, m.now.Done, m.now.Total
	case id == c.ID || id == "" && sameLabel(d.Device, c.Disk):
		d.State, d.Unfit = Joining, ""
	default:
		return
	}
	d.Since, d.Message = c.Begun, m.now.Step
	if m.now.Waits != "" {
		d.Message += ": " + m.now.Waits
	} else if m.now.Total > 0 && time.Since(m.moved) > stallMax {
		d.Message += fmt.Sprintf(": no further for %v; where the old disk can't be read, \"capsulectl capsule disk keep\" calls it off, and volumes are to be restored from copies",
			time.Since(m.moved).Round(time.Minute))
	}
}

func sameLabel(d disk.Device, i identity) bool { return identityOf(d) == i }
