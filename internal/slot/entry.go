package slot

import "capsule/internal/disk"

// An Entry is one of our entries in the boot loader's menu, as its file says
// (uapi-group.org/specifications, boot loader specification, type 1).
type Entry struct {
	File       string // name in loader/entries
	Slot       string // slot_a or slot_b
	Version    string
	UKI        string // path below the ESP: "/EFI/capsule/NAME.efi"
	Generation int    // how many entries were ever written: the highest boots first
	Counted    bool   // not known to be good: the loader counts its tries
	Left, Done int    // tries, of a counted entry
}

// Exhausted says that the loader boots this entry only if there is no other. The
// running entry may be on its last try.
func (e Entry) Exhausted() bool { return e.Counted && e.Left == 0 }

// Other is the slot that isn't this one.
func Other(slot string) string {
	if slot == disk.SlotA {
		return disk.SlotB
	}
	return disk.SlotA
}
