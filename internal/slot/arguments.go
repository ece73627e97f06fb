package slot

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
)

// added stands in a kernel command line before what an operator added to that of the
// UKI. The line is in the boot entry then, as a whole: systemd's stub takes it from
// there, unless Secure Boot is on.
const added = "capsule.added"

// addedTo gives what was added to a command line.
func addedTo(line string) []string {
	words := strings.Fields(line)
	if i := slices.Index(words, added); i >= 0 {
		return words[i+1:]
	}
	return nil
}

// Arguments are the kernel's beyond those of its UKI.
type Arguments struct {
	Running []string // what this kernel was started with
	Failed  bool     // the machine did not come up with those that are wanted
}

// RunningArguments are those that this kernel was started with.
func RunningArguments() ([]string, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, fmt.Errorf("read the kernel command line: %w", err)
	}
	return addedTo(string(text)), nil
}

// SetArguments has the running system start with these arguments beyond those of its
// UKI from the next restart on. They get an entry of their own, which is counted; the
// good one stays beside it until a start with them was good, so that one that fails is
// followed by one without. A start that failed is known by the entry that is left,
// and not tried again. Unavailable says that the running entry is on trial itself.
func SetArguments(b disk.Boot, args []string) (Arguments, error) {
	running, err := RunningArguments()
	if err != nil {
		return Arguments{}, err
	}
	counted, err := countedEntry()
	if err != nil {
		return Arguments{}, err
	}
	now := Arguments{Running: running}
	var open bool
	look := func(root string) (err error) {
		now.Failed, open, err = esp{dir: root}.argumentsOpen(b.Slot, counted, args)
		return err
	}
	if err := b.WithESP(disk.ReadOnly, look); err != nil || !open || slices.Equal(running, args) && counted != "" {
		return now, err
	}
	return now, b.WithESP(disk.Writable, func(root string) error { return esp{dir: root}.setArguments(b.Slot, counted, args) })
}

// argumentsOpen tells whether anything is to be done for a slot to start with these
// arguments next, or whether it was tried and failed.
func (e esp) argumentsOpen(slot, counted string, args []string) (failed, open bool, err error) {
	files, err := e.list()
	if err != nil {
		return false, false, err
	}
	base, trials := tried(files, slot)
	if base == nil {
		return false, len(args) > 0, nil
	}
	var newest []string
	last := base
	for i, f := range trials {
		if f.Generation > last.Generation {
			last = &trials[i]
		}
	}
	newest = addedTo(last.Options)
	if !slices.Equal(newest, args) {
		return false, true, nil
	}
	_, runs := e.find(counted)
	runs = runs && counted != "" && strings.EqualFold(path.Base(counted), last.File)
	return last.Exhausted() && !runs, false, nil
}

// tried gives the good entry of a slot, nil when it has none, and the entries of the
// same system with other arguments that came after it.
func tried(files []entryFile, slot string) (base *entryFile, trials []entryFile) {
	for i, f := range files {
		if f.Slot == slot && f.fault == "" && good(f.Entry) && (base == nil || f.Generation > base.Generation) {
			base = &files[i]
		}
	}
	for _, f := range files {
		if base != nil && f.Slot == slot && f.fault == "" && f.Again && f.Generation > base.Generation && f.UKI == base.UKI && f.Options != base.Options {
			trials = append(trials, f)
		}
	}
	return base, trials
}

func (e esp) setArguments(slot, counted string, args []string) error {
	if err := checkSlot(slot); err != nil {
		return err
	}
	files, err := e.list()
	if err != nil {
		return err
	}
	base, trials := tried(files, slot)
	if _, onTrial := e.find(counted); base == nil || counted != "" && onTrial {
		return fmt.Errorf("kernel arguments: the system that runs is on trial itself; they are set once it is confirmed: %w", errdefs.ErrUnavailable)
	}
	if !slices.Equal(addedTo(base.Options), args) {
		entry := base.Entry
		entry.Generation = next(files)
		entry.File, entry.Counted = preferredName(slot, entry.Generation), true
		if entry.Options, err = e.options(entry.UKI, args); err != nil {
			return err
		}
		text, err := entry.text()
		if err != nil {
			return err
		}
		if err := e.put(entry.File, text); err != nil {
			return err
		}
	}
	for _, f := range trials {
		if err := e.remove(f.path()); err != nil {
			return fmt.Errorf("remove boot entry %q: %w", f.File, err)
		}
	}
	return nil
}

// options is the command line of a UKI with arguments added; "" when there are none.
func (e esp) options(uki string, args []string) (string, error) {
	if len(args) == 0 {
		return "", nil
	}
	file, ok := e.find(uki)
	if !ok {
		return "", fmt.Errorf("UKI %q: %w", uki, errdefs.ErrNotFound)
	}
	line, err := cmdlineOf(filepath.Join(e.dir, file))
	if err != nil {
		return "", fmt.Errorf("UKI %q: %w", uki, err)
	}
	return strings.Join(append([]string{strings.TrimSpace(line), added}, args...), " "), nil
}

// optionsForm tells what options of ours look like: a whole command line, and what was
// added to it.
func optionsForm(line string) bool {
	if line == "" {
		return true
	}
	if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) || len(addedTo(line)) == 0 {
		return false
	}
	_, err := ParseRoot(line)
	return err == nil
}

// keepFailed leaves an entry that was given up as one whose tries are used up: it says
// that a start with its arguments failed.
func (e esp) keepFailed(f entryFile) error {
	spent := fmt.Sprintf("capsule-%s-%d+0-%d.conf", f.Slot, f.Generation, triesMax)
	if strings.EqualFold(spent, f.File) {
		return nil
	}
	if err := e.put(spent, f.text); err != nil {
		return err
	}
	return e.remove(f.path())
}
