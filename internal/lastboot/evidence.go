package lastboot

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Evidence is what the hardware has kept of the end of the boot before.
type Evidence struct {
	// Watchdogs that say that they reset the machine.
	Watchdogs []string
	// Panic is what the kernel could save of its last words.
	Panic Dump
	// LastSign is when the boot before wrote its logs last; zero when not known.
	LastSign time.Time
}

// Judge tells how a boot ended, by its record and the evidence.
func Judge(before *Boot, e Evidence) End {
	switch {
	case before != nil && before.End != nil:
		// What the hardware keeps may be of an earlier end.
		return *before.End
	case e.Panic.Text != "":
		return End{Panic, bounded("the kernel panicked: " + e.Panic.Reason()), e.Panic.Time}
	case len(e.Watchdogs) > 0:
		return End{Watchdog, fmt.Sprintf("the machine hung: reset by its watchdog %s", strings.Join(e.Watchdogs, ", ")), e.LastSign}
	case before == nil:
		return End{Kind: Unknown, Text: "nothing was noted of it"}
	}
	return End{Lost, "no orderly end: the power was cut, the machine reset, or it hung and its watchdog keeps no trace", e.LastSign}
}

// cardReset is WDIOF_CARDRESET of linux/watchdog.h.
const cardReset = 0x20

// Resets names the watchdogs below a sysfs that reset the machine last.
func Resets(sysfs string) (names []string) {
	files, _ := filepath.Glob(filepath.Join(sysfs, "class/watchdog/watchdog*/bootstatus")) // the pattern is good
	for _, file := range files {
		text, err := readFile(file, fileMax)
		if err != nil {
			continue
		}
		flags, err := strconv.ParseUint(strings.TrimSpace(string(text)), 0, 32)
		if err != nil || flags&cardReset == 0 {
			continue
		}
		name, err := readFile(filepath.Join(filepath.Dir(file), "identity"), fileMax)
		if err != nil {
			name = []byte(filepath.Base(filepath.Dir(file)))
		}
		names = append(names, strconv.Quote(strings.TrimSpace(string(name))))
	}
	return names
}

// Bounds of what is taken of dumps.
const (
	dumpsMax = 256       // records of a pstore
	dumpMax  = 256 << 10 // bytes of all
)

// Dump is the end of the kernel's log that it saved as it died.
type Dump struct {
	Time time.Time
	Text string   // lines as in the kernel's log, "<6>[  12.345678] text"
	Kept []string // the files that hold it, and older ones
}

// Dumps reads what a pstore mounted at dir holds: the newest dump, of which there may
// be several records (kernel Documentation/ABI/testing/pstore). Each begins with a
// line "Panic#1 Part1", and part 1 is the latest text.
func Dumps(dir string) (Dump, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Dump{}, err
	}
	var d Dump
	var records []record
	var errs []error
	for _, e := range entries[:min(len(entries), dumpsMax)] {
		if !strings.HasPrefix(e.Name(), "dmesg-") {
			continue
		}
		file := filepath.Join(dir, e.Name())
		d.Kept = append(d.Kept, file)
		info, err := e.Info()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		text, err := readFile(file, fileMax)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if r, ok := parseRecord(text); ok {
			r.time = info.ModTime()
			records = append(records, r)
		}
	}
	d.Time, d.Text = newest(records)
	return d, errors.Join(errs...)
}

// record of a dump.
type record struct {
	event string // "Panic#1"
	part  int
	time  time.Time
	text  string
}

// parseRecord takes a record's first line off. What was compressed and could not be
// read is none.
func parseRecord(data []byte) (record, bool) {
	head, text, ok := strings.Cut(string(data), "\n")
	event, part, isPart := strings.Cut(head, " Part")
	if !ok || !isPart || !strings.Contains(event, "#") {
		return record{}, false
	}
	n, err := strconv.Atoi(strings.TrimSpace(part))
	return record{event: event, part: n, text: strings.ToValidUTF8(text, "?")}, err == nil && n > 0
}

// newest puts the newest event's records together. All records of one are of the same
// second.
func newest(records []record) (at time.Time, text string) {
	for _, r := range records {
		if r.time.After(at) {
			at = r.time
		}
	}
	const together = 2 * time.Second
	records = slices.DeleteFunc(records, func(r record) bool { return at.Sub(r.time) > together })
	// An oops comes before the panic that it leads to; then from the oldest text on.
	slices.SortStableFunc(records, func(x, y record) int {
		return cmp.Or(cmp.Compare(number(x.event), number(y.event)), cmp.Compare(y.part, x.part))
	})
	var b strings.Builder
	for _, r := range records {
		if b.Len()+len(r.text) > dumpMax {
			break
		}
		b.WriteString(strings.TrimRight(r.text, "\n") + "\n")
	}
	if len(records) == 0 {
		return time.Time{}, ""
	}
	return at, b.String()
}

func number(event string) int {
	_, n, _ := strings.Cut(event, "#")
	i, _ := strconv.Atoi(n)
	return i
}

// Reason is the one line of the dump that says most.
func (d Dump) Reason() string {
	lines := d.Lines()
	for _, mark := range []string{"Kernel panic - not syncing: ", "Oops: ", "BUG: "} {
		for _, line := range lines {
			if _, reason, ok := strings.Cut(line, mark); ok {
				return reason
			}
		}
	}
	if len(lines) > 0 {
		return lines[len(lines)-1]
	}
	return "it left no words"
}

// Lines are those of the dump without priority and time.
func (d Dump) Lines() []string {
	var lines []string
	for line := range strings.Lines(d.Text) {
		line = strings.TrimRight(line, "\n")
		if rest, ok := strings.CutPrefix(line, "<"); ok {
			if _, text, ok := strings.Cut(rest, ">"); ok {
				line = text
			}
		}
		if rest, ok := strings.CutPrefix(line, "["); ok {
			if _, text, ok := strings.Cut(rest, "] "); ok {
				line = text
			}
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// Forget takes the records away, which frees the little memory that firmware has.
func (d Dump) Forget() error {
	var errs []error
	for _, file := range d.Kept {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// readFile reads no more than so many bytes of a file.
func readFile(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}
