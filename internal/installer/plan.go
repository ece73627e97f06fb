// Package installer puts a capsule on the disk of a machine that was started from a
// stick. It decides which disk may be taken, says what is lost, writes, and reads
// back what it wrote. The stick is only read (but for a seed that was used up), and
// no disk is opened for writing but the one that was chosen.
//
// A disk goes through these states, each of which a power cut may leave:
//
//	as it was ──▶ marked as unfinished, without any table ──▶ filled, verified ──▶ a capsule's
//
// The last step is the partition table, and of it the first sector of the disk.
// Before it, no firmware boots from there, and the next run takes the disk as empty.
// That step isn't stopped; when it fails, it's undone.
package installer

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
	"capsule/internal/lvm"
)

// A Candidate is a disk of this machine with what is on it.
type Candidate struct {
	disk.Device
	Contents []disk.Content
	Booted   bool   // the disk that we run from
	Fault    string // why it can't be read; "" when it can
}

// A Choice is what the operator says.
type Choice struct {
	Disk  string // serial number or worldwide name; "" for the only one that is empty
	Erase bool   // what is on the disk may be lost
	// Restore is the digest of a backup that was staged; "" for a new capsule.
	Restore string
}

// A Plan is what would be done.
type Plan struct {
	Disk Candidate
	// Digest stands for the disk with what is on it: an installation that names it
	// erases what was shown, or nothing.
	Digest string
}

// Rules are by which a disk is taken, for whatever purpose: it's named by what stands
// on its label, and nothing is erased that wasn't shown and agreed to.
type Rules struct {
	// Unfit says why a disk can't be taken, whatever is said; "" when it can.
	Unfit func(Candidate) string
	// Erase is how an operator says that a disk may be erased; %s is its number.
	Erase string
}

var installRules = Rules{Unfit: Unfit, Erase: "--disk %s --erase"}

// NewPlan finds the disk that a capsule is installed on, or says why none is taken. A
// pure function.
func NewPlan(disks []Candidate, choice Choice) (Plan, error) { return installRules.Plan(disks, choice) }

// Plan finds the disk that is meant, or says why it isn't taken. A pure function.
func (r Rules) Plan(disks []Candidate, choice Choice) (Plan, error) {
	target, err := r.chosen(disks, choice)
	if err != nil {
		return Plan{}, err
	}
	if why := r.Unfit(target); why != "" {
		return Plan{}, fmt.Errorf("disk %s: %s: %w", named(target), why, errdefs.ErrFailedPrecondition)
	}
	if err := unique(disks, target, choice); err != nil {
		return Plan{}, err
	}
	if len(target.Contents) > 0 && !choice.Erase {
		return Plan{}, fmt.Errorf("disk %s holds %s: nothing is erased unless you say so with %s: %w",
			named(target), holds(target), fmt.Sprintf(r.Erase, cmp.Or(choice.Disk, target.ID())), errdefs.ErrFailedPrecondition)
	}
	return Plan{Disk: target, Digest: digest(target)}, nil
}

func (r Rules) chosen(disks []Candidate, choice Choice) (Candidate, error) {
	if choice.Disk != "" {
		return r.byID(disks, choice.Disk)
	}
	if choice.Erase {
		return Candidate{}, fmt.Errorf("the disk to erase isn't named: say which one with --disk SERIAL: %w", errdefs.ErrInvalidArgument)
	}
	var empty []Candidate
	for _, c := range disks {
		if r.Unfit(c) == "" && len(c.Contents) == 0 && !c.Removable {
			empty = append(empty, c)
		}
	}
	switch len(empty) {
	case 1:
		return empty[0], nil
	case 0:
		return Candidate{}, fmt.Errorf("no disk is empty and fits%s: name one with --disk SERIAL: %w", r.list(disks), errdefs.ErrFailedPrecondition)
	}
	return Candidate{}, fmt.Errorf("%d disks are empty%s: name one with --disk SERIAL: %w", len(empty), r.list(empty), errdefs.ErrFailedPrecondition)
}

func (r Rules) byID(disks []Candidate, id string) (Candidate, error) {
	var found []Candidate
	for _, c := range disks {
		if c.Is(id) {
			found = append(found, c)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Candidate{}, fmt.Errorf("no disk has the serial number %q%s: %w", id, r.list(disks), errdefs.ErrNotFound)
	}
	return Candidate{}, same(found, id)
}

// same refuses a choice among disks that can't be told apart.
func same(found []Candidate, id string) error {
	var names []string
	for _, c := range found {
		name := c.Name
		if c.WWN != "" && !strings.EqualFold(c.WWN, id) {
			name += " (" + c.WWN + ")"
		}
		names = append(names, name)
	}
	return fmt.Errorf("%d disks have the same serial number %q: %s: unplug the others, or name one by its worldwide name: %w",
		len(found), id, strings.Join(names, ", "), errdefs.ErrFailedPrecondition)
}

// unique makes sure that what the operator saw named the disk and no other.
func unique(disks []Candidate, target Candidate, choice Choice) error {
	id := choice.Disk
	if id == "" {
		id = target.ID()
	}
	var twins []Candidate
	for _, c := range disks {
		if c.Is(id) {
			twins = append(twins, c)
		}
	}
	if len(twins) > 1 {
		return same(twins, id)
	}
	return nil
}

// Unfit says why a capsule can't be installed on a disk, whatever is said; "" when it
// can.
func Unfit(c Candidate) string { return UnfitFor(c, disk.NeededBytes) }

// UnfitFor is Unfit for another purpose, for which a disk needs so many bytes.
func UnfitFor(c Candidate, needed uint64) string {
	switch {
	case c.Booted:
		return "it's the one that this system runs from"
	case c.ReadOnly:
		return "it's write-protected"
	case c.Fault != "":
		return "it can't be read: " + c.Fault
	case c.Bytes < needed:
		return fmt.Sprintf("it's too small: it has %d MiB, and %d MiB are needed", c.Bytes>>20, needed>>20)
	case c.Sector != 512 && c.Sector != 4096:
		return fmt.Sprintf("its blocks have %d bytes, and only 512 and 4096 will do", c.Sector)
	case c.ID() == "":
		return "it tells neither serial number nor worldwide name, so that it can't be told from others"
	}
	return ""
}

// Holds is an error when a capsule on a disk has no room for volumes of so many bytes.
func Holds(c Candidate, need uint64) error {
	if need == 0 {
		return nil
	}
	table, err := disk.NewTable(c.Sector, c.Bytes/uint64(c.Sector))
	if err != nil {
		return err
	}
	perm, err := table.ByName(disk.PERM)
	if err != nil {
		return err
	}
	if room := lvm.PoolBytes(table.Bytes(perm)); room < need {
		return fmt.Errorf("disk %s is too small: it has %d MiB for volumes, and those of the backup hold %d MiB: %w",
			named(c), room>>20, need>>20, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// String is a line for people: what the disk is, and what is on it.
func (c Candidate) String() string {
	text := fmt.Sprintf("%s, %d GB", named(c), c.Bytes/1e9)
	switch {
	case c.Booted:
		return text + ": the stick"
	case len(c.Contents) > 0:
		return text + ": holds " + holds(c)
	case c.Fault != "":
		return text + ": can't be read"
	}
	return text + ": empty"
}

func named(c Candidate) string {
	text := c.Name
	if c.Model != "" {
		text += fmt.Sprintf(" (%s)", c.Model)
	}
	if id := c.ID(); id != "" {
		text = fmt.Sprintf("%q, %s", id, text)
	}
	return text
}

const listMax = 8 // disks or contents in an error

func holds(c Candidate) string {
	var parts []string
	for i, content := range c.Contents {
		if i == listMax {
			parts = append(parts, fmt.Sprintf("and %d more", len(c.Contents)-i))
			break
		}
		parts = append(parts, content.String())
	}
	return strings.Join(parts, ", ")
}

// list names disks with why each isn't taken.
func (r Rules) list(disks []Candidate) string {
	var parts []string
	for i, c := range disks {
		if i == listMax {
			parts = append(parts, fmt.Sprintf("and %d more", len(disks)-i))
			break
		}
		why := r.Unfit(c)
		if why == "" && len(c.Contents) > 0 {
			why = "it holds " + holds(c)
		}
		if why == "" && c.Removable {
			why = "it can be pulled out"
		}
		if why != "" {
			why = ": " + why
		}
		parts = append(parts, named(c)+why)
	}
	if len(parts) == 0 {
		return ", there is none"
	}
	return " (" + strings.Join(parts, "; ") + ")"
}

// digest changes when another disk has the name, or something else is on it. Names of
// this boot aren't part of it.
func digest(c Candidate) string {
	c.Name = ""
	text, _ := json.Marshal(c) // of strings and numbers
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}
