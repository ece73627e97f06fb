package slot

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"capsule/internal/disk"
)

// A leftover is a file of the ESP that's of no use any more.
type leftover struct{ file, why string }

// Untidy says whether Tidy has anything to do; a look at a read-only ESP is enough.
func Untidy(dir, running string) (bool, error) {
	found, err := esp{dir: dir}.leftovers(running)
	return len(found) > 0, err
}

// Tidy removes what cut writes and repairs left on the ESP, and says what it did,
// a sentence each. It's for the time before any update: the UKI of an update that
// has no entry yet is a leftover, too. running is the slot that runs: its system stays
// in any case.
func Tidy(dir, running string) (did []string, err error) { return esp{dir: dir}.tidy(running) }

func (e esp) tidy(running string) (did []string, err error) {
	found, err := e.leftovers(running)
	if err != nil {
		return nil, err
	}
	for _, l := range found {
		size := int64(0)
		if info, err := os.Stat(filepath.Join(e.dir, l.file)); err == nil {
			size = info.Size()
		}
		if err := e.remove(l.file); err != nil {
			return did, fmt.Errorf("remove %q from the boot partition: %w", l.file, err)
		}
		did = append(did, fmt.Sprintf("removed %q (%d bytes) from the boot partition: %s", l.file, size, l.why))
	}
	return did, nil
}

// leftovers lists entries before the UKIs that they name.
func (e esp) leftovers(running string) ([]leftover, error) {
	if err := checkSlot(running); err != nil {
		return nil, err
	}
	found, err := e.scraps()
	if err != nil {
		return nil, err
	}
	files, err := e.list()
	if err != nil {
		return nil, err
	}
	runs := best(files, running)
	entries := append(spentOwn(files, running, runs), spentOther(files, Other(running), runs)...)
	found = append(found, entries...)
	if runs == nil { // which UKI runs isn't known
		return found, nil
	}
	var gone []string
	for _, l := range entries {
		gone = append(gone, path.Base(l.file))
	}
	kernels, err := e.unnamed(gone...)
	for _, file := range kernels {
		found = append(found, leftover{file, "no boot entry names it"})
	}
	return found, err
}

// scraps lists what file system repairs and cut writes left.
func (e esp) scraps() (found []leftover, err error) {
	for _, at := range []struct{ dir, pattern, why string }{
		{".", "fsck*.rec", "a repair of the file system left it"},
		{entriesDir, "*.new", "a cut write left it"},
		{entriesDir, "*.part", "a cut write left it"},
		{kernelsDir, "*.new", "a cut write left it"},
		{kernelsDir, "*.part", "a cut write left it"},
	} {
		names, err := e.files(at.dir)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if ok, _ := path.Match(at.pattern, strings.ToLower(name)); ok {
				found = append(found, leftover{path.Join(at.dir, name), at.why})
			}
		}
	}
	return found, nil
}

// spentOwn lists the needless entries of the slot that runs. As long as it's
// counted, no counted name is touched: one of them is what the loader counts, and two
// may be one chain of clusters, which blessing copies first.
func spentOwn(files []entryFile, slot string, runs *entryFile) (spent []leftover) {
	for _, f := range files {
		switch {
		case f.Slot != slot || runs == nil || f.File == runs.File:
		case f.fault != "":
			spent = append(spent, leftover{f.path(), f.fault})
		case !runs.Counted && f.Generation <= runs.Generation:
			spent = append(spent, leftover{f.path(), fmt.Sprintf("%q is the good entry of %s", runs.File, slot)})
		}
	}
	return spent
}

// spentOther lists the needless entries of the slot that doesn't run. Once a good
// system runs, one whose tries are used up isn't one to go back to.
func spentOther(files []entryFile, slot string, runs *entryFile) (spent []leftover) {
	keep := best(files, slot)
	counts := 0 // of the entry that the loader takes
	for _, f := range files {
		if keep != nil && f.Slot == slot && f.fault == "" && f.Counted && f.Generation == keep.Generation {
			counts++
		}
	}
	for _, f := range files {
		switch {
		case f.Slot != slot:
		case f.fault != "":
			spent = append(spent, leftover{f.path(), f.fault})
		case runs == nil || runs.Counted: // it may be needed yet
		case keep.Exhausted():
			spent = append(spent, leftover{f.path(), fmt.Sprintf("%s didn't come up, its boot tries are used up", slot)})
		case keep.Counted && counts > 1 && f.Generation == keep.Generation:
			// A count that was cut: both names may be one chain of clusters, of which
			// the second would be on free ones when the first is gone.
			spent = append(spent, leftover{f.path(), fmt.Sprintf("%s has two counts of its boot tries", slot)})
		case f.File != keep.File && counts < 2:
			spent = append(spent, leftover{f.path(), fmt.Sprintf("%q is the entry of %s", keep.File, slot)})
		}
	}
	return spent
}

// RemoveDefault removes the firmware's variable that makes the loader boot one entry
// in any case, exhausted or not, and says what it was; "" when there was none.
func RemoveDefault(efivars string) (was string, err error) {
	return disk.RemoveLoaderVar(efivars, "LoaderEntryDefault")
}
