package storage

import (
	"fmt"
	"time"
)

// A change of the disks of the group: one joins it, or takes another one's place.
type change struct {
	// ID that the disk has in the group.
	ID     string   `json:"id"`
	Disk   identity `json:"disk"`
	Digest string   `json:"digest"` // of the disk with what was agreed to lose
	// Old is the id of the disk that leaves; "" when one is added.
	Old     string    `json:"old,omitempty"`
	OldDisk identity  `json:"oldDisk,omitzero"`
	Kept    bool      `json:"kept,omitempty"` // it was called off: both disks stay
	Begun   time.Time `json:"begun"`
}

// String says what is done, for people.
func (c *change) String() string {
	if c.Old == "" {
		return fmt.Sprintf("adding disk %s", c.Disk)
	}
	return fmt.Sprintf("replacing disk %s by %s", c.OldDisk, c.Disk)
}

// A holding is what the disk that joins holds.
type holding int

const (
	holdsOther  holding = iota // what nobody agreed to lose
	holdsShown                 // what was agreed to be lost
	holdsNought                // nothing, or what a cut left that is marked as nothing
	holdsOurs                  // the label of a part of the group that it isn't yet
)

// A sight is what there is of a change.
type sight struct {
	missing string // a disk of the group that isn't there, for people
	late    bool   // a disk may still appear

	there  bool // the disk that joins
	why    string
	holds  holding
	member bool

	oldMember, oldClosed bool
	oldUsed              int64 // bytes that belong to volumes
	moving               bool  // something is being moved, or was
}

// A step brings a change forward.
type step string

// Steps, as they're told to who follows.
const (
	stepJoin   step = "prepare the disk"
	stepClose  step = "close the old disk to new data"
	stepMove   step = "move volumes"
	stepReduce step = "take the old disk out"
	stepUnmove step = "stop moving"
	stepOpen   step = "open the old disk again"
	stepFinish step = "use the space"
	stepWait   step = "wait"
	stepGiveUp step = "give up"
)

// next is the one step that comes next by what there is, with why it's to wait or to
// be given up. A pure function.
func next(c change, s sight) (step, string) {
	switch {
	case s.missing != "":
		return stepWait, fmt.Sprintf("disk %s is missing: nothing is changed until it's there again", s.missing)
	case s.member:
		return inGroup(c, s), ""
	case c.Kept:
		return stepGiveUp, "it was called off"
	case !s.there && s.late:
		return stepWait, s.why
	case !s.there:
		return stepGiveUp, s.why
	case s.holds == holdsOther:
		return stepGiveUp, fmt.Sprintf("disk %s holds something else than was agreed to lose, or was cut while it was prepared: begin again", c.Disk)
	}
	return stepJoin, ""
}

// inGroup is next once the disk has joined.
func inGroup(c change, s sight) step {
	switch {
	case c.Kept && s.moving:
		return stepUnmove
	case c.Kept && s.oldMember && s.oldClosed:
		return stepOpen
	case c.Kept || !s.oldMember:
		return stepFinish
	case !s.oldClosed:
		return stepClose
	case s.oldUsed > 0 || s.moving:
		return stepMove
	}
	return stepReduce
}
