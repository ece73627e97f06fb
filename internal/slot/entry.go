package slot

import (
	"cmp"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
)

const (
	entriesDir    = "loader/entries"
	kernelsDir    = "EFI/capsule"
	triesMax      = 3        // of a slot that was never healthy
	entryMax      = 4 << 10  // bytes; ours have about a hundred
	confMax       = 64 << 10 // of an operator's own
	generationMax = 1 << 30
	versionMax    = 100 // bytes, with a name's rest well below the 255 of FAT
)

// An Entry is one of our entries in the boot loader's menu, as its file says
// (uapi-group.org/specifications, boot loader specification, type 1).
type Entry struct {
	File       string // name in loader/entries
	Slot       string // slot_a or slot_b
	Version    string
	UKI        string // path below the ESP: "/EFI/capsule/NAME.efi"
	Options    string // the kernel's command line with arguments added; "" for the UKI's own
	Generation int    // how many entries were ever written: the highest boots first
	Counted    bool   // not known to be good: the loader counts its tries
	Left, Done int    // tries, of a counted entry
	Again      bool   // counted, and was good before: Prefer wrote it
}

// Exhausted says that the loader boots this entry only if there is no other. The
// running entry may be on its last try.
func (e Entry) Exhausted() bool { return e.Counted && e.Left == 0 }

// before is the loader's order, but for a tie: of two files that are one entry with
// and without counter the one without decides, of two counts the higher.
func before(a, b Entry) int {
	return cmp.Or(
		order(a.Exhausted(), b.Exhausted()),
		cmp.Compare(b.Generation, a.Generation),
		order(a.Counted, b.Counted),
		cmp.Compare(a.Left, b.Left),
		cmp.Compare(a.File, b.File),
	)
}

func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// Other is the slot that isn't this one.
func Other(slot string) string {
	if slot == disk.SlotA {
		return disk.SlotB
	}
	return disk.SlotA
}

func checkSlot(slot string) error {
	if slot != disk.SlotA && slot != disk.SlotB {
		return fmt.Errorf("slot %q: %w", slot, errdefs.ErrInvalidArgument)
	}
	return nil
}

// counter is the loader's count of tries left and done at the end of a name
// (systemd.io/AUTOMATIC_BOOT_ASSESSMENT).
var counter = regexp.MustCompile(`\+\d+(-\d+)?(\.[A-Za-z]+)$`)

// blessedName is an entry's file name without its counter; the same name when it
// has none.
func blessedName(name string) string { return counter.ReplaceAllString(name, "$2") }

// EntryName is the file name of a slot's entry that has this many tries.
func EntryName(slot string, tries int) string {
	return fmt.Sprintf("capsule-%s+%d-0.conf", slot, tries)
}

// preferredName is the file name of a slot's entry that Prefer writes: no file has
// it, since no entry had this generation. By the generation in it a system is known
// that was good before.
func preferredName(slot string, generation int) string {
	return fmt.Sprintf("capsule-%s-%d+%d-0.conf", slot, generation, triesMax)
}

// entryName takes our names apart, in any case of letters: FAT and the loader don't
// tell them apart.
var entryName = regexp.MustCompile(`(?i)^capsule-(slot_[ab])(-\d+)?(?:\+(\d{1,9})(?:-(\d{1,9}))?)?\.conf$`)

// parseName reads what an entry's file name says.
func parseName(name string) (e Entry, ok bool) {
	m := entryName.FindStringSubmatch(name)
	if m == nil {
		return e, false
	}
	e.File, e.Slot, e.Counted = name, strings.ToLower(m[1]), m[3] != ""
	e.Left, _ = strconv.Atoi(m[3])
	e.Done, _ = strconv.Atoi(m[4])
	e.Again = e.Counted && m[2] != ""
	return e, true
}

// ofEntry is the slot in the id of a boot entry, as "capsule-slot_a.conf".
func ofEntry(id string) string {
	e, _ := parseName(path.Base(id))
	return e.Slot
}

// text is the file's content. The path comes last: a piece of it names no file, so
// that neither we nor the loader take half an entry for a whole one. What couldn't be
// read again is InvalidArgument.
func (e Entry) text() ([]byte, error) {
	options := ""
	if e.Options != "" {
		options = "options " + e.Options + "\n"
	}
	text := fmt.Appendf(nil, "title Capsule %s\nsort-key capsule\nversion %d\n%sefi %s\n", e.Version, e.Generation, options, e.UKI)
	again := Entry{File: e.File}
	if err := again.parseText(text); err != nil || again.Version != e.Version || again.UKI != e.UKI || again.Options != e.Options {
		return nil, fmt.Errorf("boot entry of version %q with UKI %q: %w", e.Version, e.UKI, errdefs.ErrInvalidArgument)
	}
	return text, nil
}

// parseText reads an entry's content. Whatever we wouldn't write is DataLoss.
func (e *Entry) parseText(text []byte) error {
	bad := func(what string) error {
		return fmt.Errorf("boot entry %q: %s: %w", e.File, what, errdefs.ErrDataLoss)
	}
	if len(text) > entryMax || !strings.HasSuffix(string(text), "\n") {
		return bad("cut")
	}
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		values[key] = strings.TrimSpace(value)
	}
	version, ours := strings.CutPrefix(values["title"], "Capsule ")
	generation, err := strconv.Atoi(values["version"])
	switch uki := values["efi"]; {
	case !ours || values["sort-key"] != "capsule" || !versionForm.MatchString(version):
		return bad("of no Capsule")
	case err != nil || generation < 1 || generation > generationMax:
		return bad("no generation")
	case !strings.HasPrefix(uki, "/") || !filepath.IsLocal(uki[1:]) || !strings.HasSuffix(strings.ToLower(uki), ".efi"):
		return bad("no UKI")
	case !optionsForm(values["options"]):
		return bad("no command line of ours")
	default:
		e.Version, e.Generation, e.UKI, e.Options = version, generation, uki, values["options"]
	}
	return nil
}

// versionForm is what a version may be made of: it's part of a file's name on FAT
// and of a line in an entry.
var versionForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]{0,` + strconv.Itoa(versionMax-1) + `}$`)

// Entries gives what the loader can boot of our slots, at most one for each slot, in
// the order of slots: whole entries whose UKI is there. Of several files for one
// slot, which a cut write can leave, it's the one that the loader takes. Exhausted
// entries are among them.
func Entries(dir string) ([]Entry, error) {
	files, err := esp{dir: dir}.list()
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, slot := range []string{disk.SlotA, disk.SlotB} {
		if f := best(files, slot); f != nil {
			out = append(out, f.Entry)
		}
	}
	return out, nil
}

// best is the file of a slot that the loader takes; nil when there's none.
func best(files []entryFile, slot string) *entryFile {
	var whole []entryFile
	for _, f := range files {
		if f.Slot == slot && f.fault == "" {
			whole = append(whole, f)
		}
	}
	if len(whole) == 0 {
		return nil
	}
	first := slices.MinFunc(whole, func(a, b entryFile) int { return before(a.Entry, b.Entry) })
	return &first
}

// next is the generation after all that were written, damaged files included.
func next(files []entryFile) int {
	last := 0
	for _, f := range files {
		last = max(last, f.Generation)
	}
	return last + 1
}

// FirstEntry is the entry of a slot that is the first on its disk: the name of its
// file below the ESP, and the content.
func FirstEntry(slot, version, uki string) (file string, text []byte, err error) {
	if err := checkSlot(slot); err != nil {
		return "", nil, err
	}
	text, err = Entry{File: EntryName(slot, triesMax), Slot: slot, Version: version, UKI: uki, Generation: 1}.text()
	return path.Join(entriesDir, EntryName(slot, triesMax)), text, err
}

// KernelFile is where a version's kernel image lies below the ESP, when it's the
// first on its disk.
func KernelFile(version string) string { return "/" + path.Join(kernelsDir, "capsule-"+version+".efi") }
