package pid1

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"capsule/internal/lastboot"
)

func TestParseKernel(t *testing.T) {
	for data, want := range map[string]kernelRecord{
		"6,339,5140900,-;NET: Registered\n SUBSYSTEM=net\n": {0, 339, 5140900 * time.Microsecond, "NET: Registered"},
		"14,340,5140901,-;capsuled: mounts done":            {1, 340, 5140901 * time.Microsecond, "capsuled: mounts done"},
	} {
		got, ok := parseKernel([]byte(data))
		if !ok || got != want || got.ours() != (want.facility == 1) {
			t.Errorf("%q: %+v, %v", data, got, ok)
		}
	}
	for _, data := range []string{"", ";x", "6,339;x", "x,1,1,-;x", "6,1,99999999999999999999,-;x"} {
		if r, ok := parseKernel([]byte(data)); ok {
			t.Errorf("%q is %+v", data, r)
		}
	}
}

func FuzzParseKernel(f *testing.F) {
	f.Add([]byte("6,339,5140900,-;text\n detail\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, ok := parseKernel(data)
		if ok && (r.up < 0 || strings.Contains(r.text, "\n")) {
			t.Fatalf("%+v", r)
		}
	})
}

// A driver that complains without end is cut short, and that is said.
func TestKernelLogIsBounded(t *testing.T) {
	dir := t.TempDir()
	k := &kernelLog{out: newLogFile(filepath.Join(dir, "kernel.log")), boot: "1c9f4b2a"}
	now, text := time.Now(), strings.Repeat("x", 1000)
	for i := range 1000 {
		k.keep(kernelRecord{number: uint64(i), text: text}, now)
	}
	k.keep(kernelRecord{number: 1000, text: "later"}, now.Add(2*kernelSpan))
	k.out.Close()
	data, err := os.ReadFile(filepath.Join(dir, "kernel.log"))
	if err != nil || len(data) > kernelQuota+1000 || len(data) < kernelQuota/2 {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	last, ok := lastboot.ParseLine([]byte(lines[len(lines)-1] + "\n"))
	if !ok || last.Text != "later" || last.Number != 1000 || last.Boot != "1c9f4b2a" {
		t.Errorf("the last is %+v", last)
	}
	if !strings.Contains(lines[len(lines)-2], "lines were too many to be kept)") {
		t.Errorf("before it is %q", lines[len(lines)-2])
	}
}

func TestMarkBoot(t *testing.T) {
	dir := t.TempDir()
	m := &machine{log: newJournal()}
	m.log.keep(dir)
	before := lastboot.Boot{ID: "a"}
	for _, end := range []lastboot.End{
		{Kind: lastboot.Lost, Text: "no orderly end", Time: time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC)},
		{Kind: lastboot.Restart, Text: "reboot, asked for by anna"},
	} {
		m.markBoot(lastboot.Boot{ID: "1c9f4b2a-1", Version: "v1", Slot: "slot_a"}, lastboot.Fact{Before: before, End: end})
	}
	m.log.close()
	data, err := os.ReadFile(filepath.Join(dir, "boots.log"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{
		"start of version v1 in slot_a; the boot before: no orderly end, at 2026-01-31T08:00:00Z",
		"start of version v1 in slot_a; the boot before: reboot, asked for by anna",
	} {
		l, ok := lastboot.ParseLine([]byte(strings.SplitAfter(string(data), "\n")[i]))
		if !ok || l.Text != want || l.Boot != "1c9f4b2a" {
			t.Errorf("line %d: %+v", i, l)
		}
	}
	if last := lastWritten(dir); time.Since(last) > time.Minute {
		t.Errorf("last written at %v", last)
	}
	if last := lastWritten(filepath.Join(dir, "none")); !last.IsZero() {
		t.Errorf("nothing was written at %v", last)
	}
}
