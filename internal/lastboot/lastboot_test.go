package lastboot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	began = time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC)
	ended = began.Add(time.Hour)
)

func TestBootsFollowEachOther(t *testing.T) {
	file := filepath.Join(t.TempDir(), "boot.json")
	first := Boot{ID: "a", Version: "v1", Slot: "slot_a", Begun: began}
	if before, err := Begin(file, first); before != nil || err != nil {
		t.Fatalf("before the first: %+v, %v", before, err)
	}
	// Process 1 that is asked twice has no former boot.
	if before, err := Begin(file, first); before != nil || err != nil {
		t.Fatalf("the same boot is before itself: %+v, %v", before, err)
	}
	before, err := Begin(file, Boot{ID: "b", Version: "v1"})
	if diff := cmp.Diff(&first, before); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	end := End{Restart, "reboot,\nasked for by anna", ended}
	if err := Finish(file, end); err != nil {
		t.Fatal(err)
	}
	before, err = Begin(file, Boot{ID: "c"})
	end.Text = "reboot, asked for by anna"
	if diff := cmp.Diff(&Boot{ID: "b", Version: "v1", End: &end}, before); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if got := Judge(before, Evidence{Watchdogs: []string{"x"}}); got != end || !got.Ordered() {
		t.Errorf("an end in order was %+v", got)
	}
	if err := os.WriteFile(file, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if before, err := Begin(file, first); before != nil || err == nil {
		t.Errorf("before one that can't be read: %+v, %v", before, err)
	}
	if before, err := Begin(file, Boot{ID: "d"}); err != nil || before.ID != "a" {
		t.Errorf("after it: %+v, %v", before, err)
	}
}

func TestGoing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "going.json")
	if _, ok := Why(file); ok {
		t.Error("a reason that nobody gave")
	}
	if err := Going(file, End{Kind: Restart, Text: strings.Repeat("x", 2*textMax)}); err != nil {
		t.Fatal(err)
	}
	if e, ok := Why(file); !ok || e.Kind != Restart || len(e.Text) != textMax {
		t.Errorf("%+v, %v", e, ok)
	}
	if err := Going(file, End{Kind: PowerOff, Text: "another mind"}); err != nil {
		t.Fatal(err)
	}
	if e, ok := Why(file); !ok || e.Text != "another mind" {
		t.Errorf("%+v, %v", e, ok)
	}
}

func TestJudge(t *testing.T) {
	cut := &Boot{ID: "a"}
	panicked := Dump{Time: ended, Text: "<0>[    9.1] Kernel panic - not syncing: sysrq triggered crash\n"}
	for name, c := range map[string]struct {
		before   *Boot
		evidence Evidence
		want     Kind
		text     string
		time     time.Time
	}{
		"nothing known": {nil, Evidence{LastSign: ended}, Unknown, "nothing was noted", time.Time{}},
		"cut":           {cut, Evidence{LastSign: ended}, Lost, "power was cut", ended},
		"watchdog":      {cut, Evidence{Watchdogs: []string{`"i6300ESB timer"`}, LastSign: ended}, Watchdog, `"i6300ESB timer"`, ended},
		"panic":         {cut, Evidence{Panic: panicked}, Panic, "sysrq triggered crash", ended},
		"both":          {cut, Evidence{Panic: panicked, Watchdogs: []string{"x"}}, Panic, "sysrq", ended},
		"no record":     {nil, Evidence{Panic: panicked}, Panic, "sysrq", ended},
	} {
		got := Judge(c.before, c.evidence)
		if got.Kind != c.want || !strings.Contains(got.Text, c.text) || !got.Time.Equal(c.time) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644), os.Chtimes(name, ended, ended)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestResets(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, filepath.Join(dir, "class/watchdog"), map[string]string{
		"watchdog0/bootstatus": "0\n", "watchdog0/identity": "Software Watchdog\n",
		"watchdog1/bootstatus": "32\n", "watchdog1/identity": "i6300ESB timer\n",
		"watchdog2/bootstatus": "x\n", "watchdog3/bootstatus": "33\n",
	})
	if diff := cmp.Diff([]string{`"i6300ESB timer"`, `"watchdog3"`}, Resets(dir)); diff != "" {
		t.Error(diff)
	}
}

func TestDumps(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{
		"dmesg-efi_pstore-1":       "Panic#2 Part1\n<0>[    3.0] Kernel panic - not syncing: Fatal exception\n<0>[    3.1] ---[ end\n",
		"dmesg-efi_pstore-2":       "Panic#2 Part2\n<4>[    2.0] RIP: 0010\n",
		"dmesg-efi_pstore-3":       "Oops#1 Part1\n<1>[    1.0] BUG: unable to handle page fault\n",
		"dmesg-efi_pstore-4.enc.z": "\x78\x9c\x00",
		"dmesg-efi_pstore-5":       "Panic#1 Part1\n<0>[    1.0] Kernel panic - not syncing: an older one\n",
		"console-ramoops-0":        "not a dump",
	})
	old := ended.Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "dmesg-efi_pstore-5"), old, old); err != nil {
		t.Fatal(err)
	}
	d, err := Dumps(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"BUG: unable to handle page fault", "RIP: 0010", "Kernel panic - not syncing: Fatal exception", "---[ end"}
	if diff := cmp.Diff(want, d.Lines()); diff != "" {
		t.Error(diff)
	}
	if !d.Time.Equal(ended) || d.Reason() != "Fatal exception" || len(d.Kept) != 5 {
		t.Errorf("at %v, %q, %d files", d.Time, d.Reason(), len(d.Kept))
	}
	if err := d.Forget(); err != nil {
		t.Fatal(err)
	}
	if d, err := Dumps(dir); err != nil || d.Text != "" || d.Kept != nil {
		t.Errorf("after it was forgotten: %+v, %v", d, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func FuzzDump(f *testing.F) {
	f.Add([]byte("Panic#2 Part1\n<0>[    3.0] Kernel panic - not syncing: x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, ok := parseRecord(data)
		if !ok {
			return
		}
		_, text := newest([]record{r})
		d := Dump{Text: text}
		if strings.Contains(d.Reason(), "\n") {
			t.Fatalf("%q", d.Reason())
		}
	})
}

func TestLine(t *testing.T) {
	l := Line{Time: ended.Add(1500 * time.Microsecond), Boot: "1c9f4b2a-0000-4000", Number: 339, Text: "two\nlines "}
	const want = "2026-01-31T09:00:00.001500Z 1c9f4b2a 339 two lines \n"
	if l.String() != want {
		t.Errorf("%q", l)
	}
	got, ok := ParseLine([]byte(want))
	if !ok || got.String() != want {
		t.Errorf("%+v, %v", got, ok)
	}
	for _, other := range []string{"", "       1.234 6 clock done in 1ms\n", "time=2026-01-31T09:00:00Z level=INFO msg=x\n", "2026-01-31T09:00:00.001500Z 1c9f4b2a x text\n"} {
		if l, ok := ParseLine([]byte(other)); ok {
			t.Errorf("%q is %+v", other, l)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add([]byte("2026-01-31T09:00:00.001500Z 1c9f4b2a 339 text\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, ok := ParseLine(data)
		if !ok {
			return
		}
		if again, ok := ParseLine([]byte(l.String())); !ok || again != l {
			t.Fatalf("%+v is read as %+v", l, again)
		}
	})
}
