package logs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLimitsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "limits")
	want := Limits{FileBytes: 100 << 10, Files: 7}
	if got := ReadLimits(file); got != DefaultLimits {
		t.Errorf("without a file: %+v", got)
	}
	if err := SaveLimits(file, want); err != nil {
		t.Fatal(err)
	}
	if got := ReadLimits(file); got != want {
		t.Errorf("%+v", got)
	}
	for _, text := range []string{"", "1", "-1 4", "4 0", "x 4", "4 y", "99999999999999999999 4", "1 2 3"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := ReadLimits(file); got != DefaultLimits {
			t.Errorf("%q is read as %+v", text, got)
		}
	}
}

// A writer that runs for years takes on what is declared meanwhile.
func TestFollowLimits(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "limits")
	save := func(l Limits) {
		t.Helper()
		if err := SaveLimits(file, l); err != nil {
			t.Fatal(err)
		}
	}
	save(Limits{FileBytes: 10 << 10, Files: 6})
	w := newWriter(t, filepath.Join(dir, "web"), DefaultLimits)
	defer w.Close()
	w.Follow(file)
	fill := func() int {
		t.Helper()
		for range 100 {
			w.Write(Stdout, []byte(strings.Repeat("a", 1000)+"\n"))
			w.Flush()
		}
		seqs, err := list(w.dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(seqs)
	}
	if n := fill(); n != 6 {
		t.Errorf("%d files, want 6", n)
	}
	save(Limits{FileBytes: 5 << 10, Files: 2})
	if n := fill(); n != 2 {
		t.Errorf("%d files after the limits changed, want 2", n)
	}
	info, err := os.Stat(w.path(w.seq))
	if err != nil || info.Size() > 5<<10 {
		t.Errorf("the last file: %v, %v", info, err)
	}
}
