package pid1

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/lastboot"
	"capsule/internal/version"
)

const (
	pstoreDir = "/sys/fs/pstore"
	// driversMax bounds the wait for the drivers of watchdogs, which remember a reset.
	driversMax = time.Minute
)

// learnEnd finds out how the boot before ended, and says so where this boot's logs
// begin. It runs beside the start: nobody waits for it. The sign is when the logs were
// last written to.
func (m *machine) learnEnd(ctx context.Context, sign time.Time) {
	defer close(m.learnt)
	boot := lastboot.Boot{ID: lastboot.ThisBoot(), Version: version.Version, Slot: m.boot.Slot, Begun: begun()}
	var before *lastboot.Boot
	evidence := lastboot.Evidence{LastSign: sign}
	if m.reason == "" {
		var err error
		if before, err = lastboot.Begin(lastboot.File, boot); err != nil {
			m.log.important("record this boot: %v", err)
		}
	}
	select {
	case <-m.driven:
	case <-time.After(driversMax):
	case <-ctx.Done():
		return
	}
	evidence.Watchdogs = lastboot.Resets(sysfs)
	var err error
	if evidence.Panic, err = m.readDumps(); err != nil {
		m.log.say("what the kernel saved of its last words: %v", err)
	}
	fact := lastboot.Fact{End: lastboot.Judge(before, evidence)}
	if before != nil {
		fact.Before = *before
	}
	if m.reason != "" && fact.End.Kind == lastboot.Unknown {
		fact.End.Text = "not known: /perm, which has it, can't be read"
	}
	if err := lastboot.Tell(lastboot.FactFile, fact); err != nil {
		m.log.important("tell how the last boot ended: %v", err)
	}
	m.markBoot(boot, fact)
	m.keepDump(evidence.Panic, before)
}

// begun is when the machine was started, by the clock as it is now.
func begun() time.Time { return time.Now().Add(-uptime()).UTC() }

// lastWritten is when logs were last written to; zero when there are none.
func lastWritten(dir string) (last time.Time) {
	files, _ := filepath.Glob(filepath.Join(dir, "*.log*")) // the pattern is good
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && info.ModTime().After(last) {
			last = info.ModTime()
		}
	}
	return last
}

// readDumps asks the machine's firmware, where it keeps what a dying kernel saves.
func (m *machine) readDumps() (lastboot.Dump, error) {
	if m.modules != nil {
		_ = m.modules.Load("efi_pstore") // a machine without such firmware has no use for it
	}
	var st unix.Statfs_t
	if err := unix.Statfs(pstoreDir, &st); err != nil {
		return lastboot.Dump{}, nil //nolint:nilerr // a kernel without it
	}
	if st.Type != unix.PSTOREFS_MAGIC {
		if err := unix.Mount("pstore", pstoreDir, "pstore", safe, ""); err != nil {
			return lastboot.Dump{}, fmt.Errorf("mount %s: %w", pstoreDir, err)
		}
	}
	return lastboot.Dumps(pstoreDir)
}

// markBoot says where a boot begins, among the lines of all logs.
func (m *machine) markBoot(boot lastboot.Boot, fact lastboot.Fact) {
	text := fmt.Sprintf("start of version %s in %s; the boot before: %s", boot.Version, boot.Slot, fact.End.Text)
	if !fact.End.Time.IsZero() {
		text += ", at " + fact.End.Time.UTC().Format(time.RFC3339)
	}
	if fact.End.Ordered() || fact.End.Kind == lastboot.Unknown {
		m.log.say("%s", text)
	} else {
		m.log.important("%s", text)
	}
	file := newLogFile(filepath.Join(m.log.dir, "boots.log"))
	defer file.Close()
	_, _ = file.Write(keptLine(0, boot.ID, 0, text))
	_ = file.sync() // a cut soon after leaves it; a disk that is full or gone has lost it
}

// keepDump takes what the kernel saved into its log, and then out of the firmware's
// memory, which is small. A disk that does not take it leaves it there.
func (m *machine) keepDump(d lastboot.Dump, before *lastboot.Boot) {
	if len(d.Kept) == 0 || m.reason != "" {
		return
	}
	id := ""
	if before != nil {
		id = before.ID
	}
	file := newLogFile(filepath.Join(m.log.dir, "panic.log"))
	defer file.Close()
	for _, text := range d.Lines() {
		_, _ = file.Write([]byte(lastboot.Line{Time: d.Time, Boot: id, Text: text}.String()))
	}
	if err := file.sync(); err != nil {
		m.log.important("keep the kernel's last words: %v", err)
		return
	}
	if err := d.Forget(); err != nil {
		m.log.important("take the kernel's last words out of the firmware's memory: %v", err)
	}
}

// noteEnd records that this boot ends in order, and why.
func (m *machine) noteEnd(kind shutdownKind) error {
	if m.reason != "" {
		return nil
	}
	<-m.learnt
	end := lastboot.End{Kind: lastboot.Restart, Text: "restarted by a signal to process 1"}
	if kind == powerOff {
		end = lastboot.End{Kind: lastboot.PowerOff, Text: "powered off by a signal to process 1"}
	}
	if why, ok := lastboot.Why(lastboot.GoingFile); ok {
		end = why
	}
	end.Time = time.Now().UTC()
	if err := lastboot.Finish(lastboot.File, end); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("note why this boot ends: %w", err)
	}
	return nil
}

// going says why the machine is about to end in order.
func (m *machine) going(kind lastboot.Kind, format string, args ...any) {
	if err := lastboot.Going(lastboot.GoingFile, lastboot.End{Kind: kind, Text: fmt.Sprintf(format, args...)}); err != nil {
		m.log.important("note why the machine ends: %v", err)
	}
}
