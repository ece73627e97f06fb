package slot

import (
	"io"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
)

// A Root says where in a slot a root's data ends and what proves it.
type Root struct {
	Hash      string // of the verity tree, hex
	DataBytes int64  // offset of the verity superblock
}

// RunningRoot is the root that this kernel was started with.
func RunningRoot() (Root, error) { return Root{}, errdefs.ErrNotImplemented }

// RootOf is the root that an entry's UKI wants in its slot.
func RootOf(esp string, e Entry) (Root, error) { return Root{}, errdefs.ErrNotImplemented }

// Entries gives what the loader can boot of our slots, at most one for each slot, in
// the order of slots: whole entries whose UKI is there. Of several files for one
// slot, which a cut write can leave, it's the one that the loader takes. Exhausted
// entries are among them.
func Entries(esp string) ([]Entry, error) { return nil, errdefs.ErrNotImplemented }

// Untidy says whether Tidy has anything to do; a look at a read-only ESP is enough.
func Untidy(esp, running string) (bool, error) { return false, errdefs.ErrNotImplemented }

// Tidy removes what cut writes and repairs left on the ESP, and says what it did,
// a sentence each. It's for the time before any update: the UKI of an update
// that has no entry yet is a leftover, too. running is the slot that runs: its entry and UKI stay in any case.
func Tidy(esp, running string) (did []string, err error) { return nil, errdefs.ErrNotImplemented }

// Space is how much can be written to the ESP now, in bytes.
func Space(esp string) (int64, error) { return 0, errdefs.ErrNotImplemented }

// Frees is how many bytes Forget of this slot would give back.
func Frees(esp, slot string) (int64, error) { return 0, errdefs.ErrNotImplemented }

// Forget removes the slot's entries and then their UKIs, so that the slot can be
// written. The other slot must have a good entry (FailedPrecondition): it's all that
// is left to boot.
func Forget(esp, slot string) error { return errdefs.ErrNotImplemented }

// Install writes a UKI of size bytes under a name that no file has, reads it back,
// and returns its path for Activate. Nothing boots it yet. What is too large for
// the ESP is ResourceExhausted; a failed one leaves no file. Use it on an ESP that's
// mounted disk.Buffered.
func Install(esp, slot, version string, uki io.Reader, size int64) (written string, err error) {
	return "", errdefs.ErrNotImplemented
}

// Activate gives the slot its entry, counted, of the next generation: the next
// boot is one of its tries. The slot's other entries go. The other slot must have a
// good entry (FailedPrecondition).
func Activate(esp, slot, version, uki string) error { return errdefs.ErrNotImplemented }

// Prefer makes a slot's good system the one that boots next. FailedPrecondition says
// that it never was good or that its tries are used up, NotFound that there's none.
func Prefer(esp, slot string) error { return errdefs.ErrNotImplemented }

// Condemn removes a slot's entries, so that the other slot boots. When that one has
// nothing to boot it's FailedPrecondition, and nothing is removed.
func Condemn(esp, slot string) error { return errdefs.ErrNotImplemented }

// Tentative says whether the running system is on trial: its entry is counted and
// the other slot has a system to go back to.
func Tentative(b disk.Boot) (bool, error) { return false, errdefs.ErrNotImplemented }

// RemoveDefault removes the firmware's variable that makes the loader boot one entry
// in any case, exhausted or not, and says what it was; "" when there was none.
func RemoveDefault(efivars string) (was string, err error) { return "", errdefs.ErrNotImplemented }
