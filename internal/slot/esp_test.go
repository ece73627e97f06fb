package slot

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// files are the ESP's files by path. The content of an entry is short for it: "3 1.2"
// is generation 3 of version 1.2, whose UKI is capsule-1.2.efi.
type files map[string]string

var short = regexp.MustCompile(`^(\d+) (\S+)$`)

func (f files) write(t *testing.T, dir string) {
	t.Helper()
	for file, text := range f {
		if m := short.FindStringSubmatch(text); m != nil {
			text = fmt.Sprintf("title Capsule %s\nsort-key capsule\nversion %s\nefi /EFI/capsule/capsule-%s.efi\n", m[2], m[1], m[2])
		}
		target := filepath.Join(dir, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(target), 0o700), os.WriteFile(target, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

var long = regexp.MustCompile(`(?s)^title Capsule (\S+)\nsort-key capsule\nversion (\d+)\nefi /EFI/capsule/capsule-(\S+)\.efi\n$`)

// readFiles is the opposite of write. An entry whose UKI has another name than that of its
// version is "3 1.2 1.2-2".
func readFiles(t *testing.T, dir string) files {
	t.Helper()
	got := files{}
	if err := filepath.WalkDir(dir, func(file string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(file)
		if m := long.FindStringSubmatch(string(text)); m != nil {
			text = []byte(m[2] + " " + m[1])
			if m[3] != m[1] {
				text = append(text, " "+m[3]...)
			}
		}
		name, _ := filepath.Rel(dir, file)
		got[name] = string(text)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

// plain is an esp on a plain folder, without waits for its disk.
func plain(t *testing.T, have files) esp {
	t.Helper()
	dir := t.TempDir()
	have.write(t, dir)
	return esp{dir: dir, step: func(string, string) error { return nil }}
}

// boots is what systemd-boot does (src/boot/boot.c): the UKI that it starts. It takes
// any entry whose file is there, whatever we think of it.
func boots(t *testing.T, dir string) string {
	t.Helper()
	type option struct {
		spent      bool
		generation int
		uki        string
	}
	var options []option
	matches, _ := filepath.Glob(filepath.Join(dir, "loader/entries/*.conf"))
	for _, file := range matches {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		o := option{spent: strings.Contains(file, "+0")}
		for line := range strings.SplitSeq(string(text), "\n") {
			switch key, value, _ := strings.Cut(line, " "); key {
			case "version":
				o.generation, _ = strconv.Atoi(value)
			case "efi":
				o.uki = value
			}
		}
		if info, err := os.Stat(filepath.Join(dir, o.uki)); err == nil && info.Mode().IsRegular() {
			options = append(options, o)
		}
	}
	if len(options) == 0 {
		return "nothing"
	}
	return slices.MinFunc(options, func(a, b option) int {
		return cmp.Or(order(a.spent, b.spent), cmp.Compare(b.generation, a.generation))
	}).uki
}

const (
	goodA    = "loader/entries/capsule-slot_a.conf"
	goodB    = "loader/entries/capsule-slot_b.conf"
	newB     = "loader/entries/capsule-slot_b+3-0.conf"
	triedB   = "loader/entries/capsule-slot_b+2-1.conf"
	lastB    = "loader/entries/capsule-slot_b+0-3.conf"
	kernels  = "EFI/capsule/capsule-"
	conf     = "loader/loader.conf"
	confText = "timeout 0\n"
)

// whole is an ESP with a good system in A and another in B.
func whole(more files) files {
	f := files{goodA: "4 1.0", kernels + "1.0.efi": "MZ a", kernels + "0.9.efi": "MZ b", conf: confText}
	for file, text := range more {
		f[file] = text
	}
	return f
}

// A cutter is a power cut before a step: at the first one for 0. From then on no
// step is done. A file that is being written gets what the disk happens to have.
type cutter struct {
	dir   string
	steps int
	waste string
	off   bool
}

var errCut = errors.New("the power is off")

func (c *cutter) step(what, file string) error {
	c.steps--
	if c.off || c.steps >= 0 {
		if c.off {
			return errCut
		}
		return nil
	}
	c.off = true
	if what == "fill" {
		_ = os.WriteFile(filepath.Join(c.dir, file), []byte(c.waste), 0o600)
	}
	return errCut
}

// wastes are what a cut can leave of an entry: nothing, half of it, clusters that
// were never written, an old entry that was there before.
var wastes = map[string]string{
	"empty": "",
	"half":  "title Capsule 2.0\nsort-key capsule\nversion 5\nefi /EFI/capsule/capsule-2.",
	"zeros": strings.Repeat("\x00", 80),
	"old":   "title Capsule 0.9\nsort-key capsule\nversion 3\nefi /EFI/capsule/capsule-0.9.efi\n",
}

func update(e esp) error {
	if err := e.forget("slot_b"); err != nil {
		return err
	}
	uki, err := e.install("slot_b", "2.0", strings.NewReader("MZ new"), 6)
	if err != nil {
		return err
	}
	return e.activate(Entry{Slot: "slot_b", Version: "2.0", UKI: uki})
}

// TestCuts cuts the power before each step of each change. Whatever is left boots
// a whole system, tidying doesn't change which one, and the change can be done again.
func TestCuts(t *testing.T) {
	const a, b, n = "/" + kernels + "1.0.efi", "/" + kernels + "0.9.efi", "/" + kernels + "2.0.efi"
	two := whole(files{triedB: "5 2.0", kernels + "2.0.efi": "MZ n"})
	for name, tc := range map[string]struct {
		before files
		do     func(esp) error
		boots  []string // at a cut; the last one at the end
		steps  int      // at least
	}{
		"update":                    {whole(files{goodB: "3 0.9"}), update, []string{a, n}, 6},
		"update after a failed one": {whole(files{lastB: "5 0.9"}), update, []string{a, n}, 6},
		"bless":                     {two, func(e esp) error { return e.bless(triedB) }, []string{n}, 3},
		"bless the only system": {files{triedB: "1 0.9", kernels + "0.9.efi": "MZ b"},
			func(e esp) error { return e.bless(triedB) }, []string{b}, 3},
		"go back":                   {whole(files{goodB: "5 0.9"}), func(e esp) error { return e.prefer("slot_a") }, []string{b, a}, 3},
		"go back while on trial":    {two, func(e esp) error { return e.prefer("slot_a") }, []string{n, a}, 3},
		"go forth":                  {whole(files{goodB: "3 0.9"}), func(e esp) error { return e.prefer("slot_b") }, []string{a, b}, 3},
		"condemn":                   {two, func(e esp) error { return e.condemn("slot_b") }, []string{n, a}, 1},
		"condemn what is two files": {whole(files{triedB: "5 0.9", newB: "5 0.9"}), func(e esp) error { return e.condemn("slot_b") }, []string{b, a}, 2},
		"tidy": {whole(files{lastB: "5 0.9", newB: "", "FSCK0000.REC": "x", kernels + "0.8.efi": "MZ"}),
			func(e esp) error { _, err := e.tidy("slot_a"); return err }, []string{a}, 5},
	} {
		t.Run(name, func(t *testing.T) {
			for kind, waste := range wastes {
				steps := 0
				for cut(t, fmt.Sprintf("%s, cut %d", kind, steps), tc.before, tc.do, tc.boots, steps, waste) {
					steps++
				}
				if steps < tc.steps {
					t.Errorf("%d steps, want %d", steps, tc.steps)
				}
			}
		})
	}
}

// TestBlessOnTheLastTry is apart: a cut before the copy is whole costs the system its
// trial, and blessing it can't be done again.
func TestBlessOnTheLastTry(t *testing.T) {
	for kind, waste := range wastes {
		for steps, want := range []string{"1.0", "1.0", "2.0", "2.0"} {
			e := plain(t, whole(files{lastB: "5 2.0", kernels + "2.0.efi": "MZ n"}))
			c := &cutter{dir: e.dir, steps: steps, waste: waste}
			if err := (esp{dir: e.dir, step: c.step}).bless(lastB); (err != nil) != c.off {
				t.Errorf("%s, cut %d: %v", kind, steps, err)
			}
			if got := boots(t, e.dir); got != "/"+kernels+want+".efi" {
				t.Errorf("%s, cut %d: boots %s, want %s", kind, steps, got, want)
			}
		}
	}
}

// cut does one change with a cut before one of its steps, and says whether there was one.
func cut(t *testing.T, at string, before files, do func(esp) error, want []string, steps int, waste string) bool {
	t.Helper()
	e := plain(t, before)
	c := &cutter{dir: e.dir, steps: steps, waste: waste}
	err := do(esp{dir: e.dir, step: c.step})
	if (err != nil) != c.off {
		t.Fatalf("%s: %v", at, err)
	}
	got := boots(t, e.dir)
	if !slices.Contains(want, got) {
		t.Fatalf("%s: boots %s, want one of %s", at, got, want)
	}
	running := "slot_b"
	if got == "/"+kernels+"1.0.efi" {
		running = "slot_a"
	}
	if _, err := e.tidy(running); err != nil {
		t.Fatalf("%s: tidy: %v", at, err)
	}
	if more, err := e.leftovers(running); len(more) > 0 || err != nil {
		t.Fatalf("%s: tidied, but still %v, %v", at, more, err)
	}
	if again := boots(t, e.dir); again != got {
		t.Fatalf("%s: boots %s after it was tidied, %s before", at, again, got)
	}
	end := want[len(want)-1]
	if got != end {
		if err := do(e); err != nil {
			t.Fatalf("%s: again: %v", at, err)
		}
	}
	if got := boots(t, e.dir); got != end {
		t.Fatalf("%s: boots %s in the end, want %s", at, got, end)
	}
	return c.off
}

// TestChanges checks all that each change does to the ESP.
func TestChanges(t *testing.T) {
	const k10, k09, k20 = kernels + "1.0.efi", kernels + "0.9.efi", kernels + "2.0.efi"
	bless := func(file string) func(esp) error { return func(e esp) error { return e.bless(file) } }
	giveUp := func(file string) func(esp) error { return func(e esp) error { return e.giveUp(file) } }
	prefer := func(slot string) func(esp) error { return func(e esp) error { return e.prefer(slot) } }
	condemn := func(slot string) func(esp) error { return func(e esp) error { return e.condemn(slot) } }
	forget := func(slot string) func(esp) error { return func(e esp) error { return e.forget(slot) } }
	activate := func(version, uki string) func(esp) error {
		return func(e esp) error { return e.activate(Entry{Slot: "slot_b", Version: version, UKI: uki}) }
	}
	for name, tc := range map[string]struct {
		before files
		do     func(esp) error
		change files // "-" for a file that goes
		class  func(error) bool
	}{
		"update": {whole(files{goodB: "3 0.9"}), update,
			files{goodB: "-", k09: "-", newB: "5 2.0", k20: "MZ new"}, nil},
		"update to the version that runs": {whole(files{k20: "MZ a", goodA: "7 2.0", k10: "-"}), update,
			files{k09: "-", newB: "8 2.0 2.0-2", kernels + "2.0-2.efi": "MZ new"}, nil},
		"update while on trial": {whole(files{triedB: "5 0.9"}), forget("slot_a"), nil, errdefs.IsFailedPrecondition},
		"the good UKI is gone":  {files{goodA: "1 1.0", goodB: "2 0.9", k09: "x"}, forget("slot_b"), nil, errdefs.IsFailedPrecondition},
		"forget keeps what others name": {whole(files{goodB: "3 1.0", "loader/entries/own.conf": "title x\r\nefi \\EFI\\Capsule\\CAPSULE-0.9.EFI\r\n"}),
			forget("slot_b"), files{goodB: "-"}, nil},
		"forget an odd slot":             {whole(nil), forget("slot_c"), nil, errdefs.IsInvalidArgument},
		"activate what isn't there":      {whole(nil), activate("2.0", "/"+k20), nil, errdefs.IsNotFound},
		"activate a version with a line": {whole(nil), activate("2.0\nefi /x.efi", "/"+k09), nil, errdefs.IsInvalidArgument},
		"activate twice":                 {whole(files{triedB: "5 0.9"}), activate("0.9", "/"+k09), files{triedB: "-", newB: "6 0.9"}, nil},
		"bless":                          {whole(files{triedB: "5 0.9"}), bless(triedB), files{triedB: "-", goodB: "5 0.9"}, nil},
		"bless in capitals":              {whole(files{triedB: "5 0.9"}), bless("LOADER/Entries/CAPSULE-slot_b+2-1.conf"), files{triedB: "-", goodB: "5 0.9"}, nil},
		"bless again":                    {whole(files{goodB: "5 0.9"}), bless(triedB), nil, nil},
		"bless after going back":         {whole(files{"loader/entries/capsule-slot_b-9.conf": "9 0.9"}), bless(triedB), nil, nil},
		"bless what was given up":        {whole(nil), bless(triedB), nil, errdefs.IsFailedPrecondition},
		"bless damage":                   {whole(files{triedB: "x"}), bless(triedB), nil, errdefs.IsDataLoss},
		"bless two counts":               {whole(files{triedB: "5 0.9", newB: "5 0.9"}), bless(triedB), files{triedB: "-", newB: "-", goodB: "5 0.9"}, nil},
		"bless a stranger":               {whole(files{"loader/entries/x+1-0.conf": "5 0.9"}), bless("loader/entries/x+1-0.conf"), nil, errdefs.IsInvalidArgument},
		"bless, full": {whole(files{triedB: "5 0.9"}), func(e esp) error {
			e.step = full("fill")
			return e.bless(triedB)
		}, files{triedB: "-", goodB: "5 0.9"}, nil},
		"install, full": {whole(nil), func(e esp) error {
			e.step = full("fill")
			return update(e)
		}, files{k09: "-"}, func(err error) bool { return errors.Is(err, unix.ENOSPC) }},
		"go back":                        {whole(files{goodB: "5 0.9"}), prefer("slot_a"), files{goodA: "-", "loader/entries/capsule-slot_a-6+3-0.conf": "6 1.0"}, nil},
		"go back twice":                  {files{goodB: "5 0.9", k09: "MZ b", "loader/entries/capsule-slot_a-6+3-0.conf": "6 1.0", k10: "MZ a"}, prefer("slot_a"), nil, nil},
		"go back to what boots":          {whole(files{goodB: "3 0.9"}), prefer("slot_a"), nil, nil},
		"go back to nothing":             {whole(nil), prefer("slot_b"), nil, errdefs.IsNotFound},
		"go back to what failed":         {whole(files{lastB: "5 0.9"}), prefer("slot_b"), nil, errdefs.IsFailedPrecondition},
		"go back to what was never good": {whole(files{newB: "5 0.9"}), prefer("slot_b"), nil, errdefs.IsFailedPrecondition},
		"give up":                        {whole(files{triedB: "5 0.9"}), giveUp(triedB), files{triedB: "-"}, nil},
		"give up twice":                  {whole(nil), giveUp(triedB), nil, nil},
		"give up what was confirmed":     {whole(files{goodB: "5 0.9"}), giveUp(triedB), nil, func(err error) bool { return errors.Is(err, ErrConfirmed) }},
		"give up, confirmed and cut":     {whole(files{goodB: "5 0.9", triedB: "5 0.9"}), giveUp(triedB), nil, func(err error) bool { return errors.Is(err, ErrConfirmed) }},
		"give up the last":               {files{triedB: "5 0.9", k09: "x"}, giveUp(triedB), nil, errdefs.IsFailedPrecondition},
		"condemn":                        {whole(files{triedB: "5 0.9", goodB: ""}), condemn("slot_b"), files{triedB: "-", goodB: "-"}, nil},
		"condemn the last":               {files{triedB: "5 0.9", k09: "x"}, condemn("slot_b"), nil, errdefs.IsFailedPrecondition},
		"condemn when the other failed":  {whole(files{lastB: "5 0.9"}), condemn("slot_a"), nil, errdefs.IsFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			e := plain(t, tc.before)
			if tc.before[k10] == "-" {
				_ = os.Remove(filepath.Join(e.dir, k10))
				delete(tc.before, k10)
			}
			err := tc.do(e)
			if tc.class == nil && err != nil || tc.class != nil && !tc.class(err) {
				t.Fatal(err)
			}
			want := files{}
			for _, more := range []files{tc.before, tc.change} {
				for file, text := range more {
					want[file] = text
					if text == "-" {
						delete(want, file)
					}
				}
			}
			if diff := gocmp.Diff(want, readFiles(t, e.dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// full is a disk that has no space at one step.
func full(at string) func(string, string) error {
	return func(what, _ string) error {
		if what == at {
			return unix.ENOSPC
		}
		return nil
	}
}

func TestTidy(t *testing.T) {
	const k09 = kernels + "0.9.efi"
	for name, tc := range map[string]struct {
		before  files
		running string
		gone    []string
	}{
		"tidy":                          {whole(files{goodB: "3 0.9"}), "slot_a", nil},
		"repairs":                       {whole(files{goodB: "3 0.9", "FSCK0000.REC": "x", "fsck0001.rec": "", "fsck.txt": "", "EFI/FSCK0000.REC": ""}), "slot_a", []string{"FSCK0000.REC", "fsck0001.rec"}},
		"drafts":                        {whole(files{goodB: "3 0.9", goodA + ".new": "", kernels + "2.efi.part": ""}), "slot_a", []string{goodA + ".new", kernels + "2.efi.part"}},
		"UKI without entry":             {whole(nil), "slot_a", []string{k09}},
		"cut entry":                     {whole(files{newB: ""}), "slot_a", []string{newB, k09}},
		"entry without UKI":             {whole(files{newB: "5 2.0", goodB: "3 0.9"}), "slot_a", []string{newB}},
		"cut blessing":                  {whole(files{goodB: "5 0.9", triedB: "5 0.9"}), "slot_b", []string{triedB}},
		"blessing cut early":            {whole(files{goodB: "", triedB: "5 0.9"}), "slot_b", []string{goodB}},
		"cut preference":                {whole(files{goodB: "5 0.9", "loader/entries/capsule-slot_b-6.conf": "6 0.9"}), "slot_a", []string{goodB}},
		"cut preference, counted":       {whole(files{goodB: "5 0.9", "loader/entries/capsule-slot_b-6+3-0.conf": "6 0.9"}), "slot_a", []string{goodB}},
		"cut preference that failed":    {whole(files{goodB: "5 0.9", "loader/entries/capsule-slot_b-6+0-3.conf": "6 0.9"}), "slot_a", []string{"loader/entries/capsule-slot_b-6+0-3.conf"}},
		"cut count of a preference":     {whole(files{goodB: "5 0.9", "loader/entries/capsule-slot_b-6+3-0.conf": "6 0.9", "loader/entries/capsule-slot_b-6+2-1.conf": "6 0.9"}), "slot_a", []string{"loader/entries/capsule-slot_b-6+2-1.conf", "loader/entries/capsule-slot_b-6+3-0.conf"}},
		"failed update":                 {whole(files{lastB: "5 0.9"}), "slot_a", []string{lastB, k09}},
		"waiting update":                {whole(files{newB: "5 0.9"}), "slot_a", nil},
		"last try":                      {whole(files{lastB: "5 0.9"}), "slot_b", nil},
		"both failed":                   {files{"loader/entries/capsule-slot_a+0-3.conf": "1 0.9", lastB: "5 0.9", k09: "x"}, "slot_b", nil},
		"cut count":                     {whole(files{newB: "5 0.9", triedB: "5 0.9"}), "slot_a", []string{newB, triedB, k09}},
		"cut count of what runs":        {whole(files{newB: "5 0.9", triedB: "5 0.9"}), "slot_b", nil},
		"older than what's on trial":    {whole(files{goodB: "3 0.9", lastB: "5 0.9"}), "slot_b", nil},
		"entry of what runs is damaged": {whole(files{goodB: "?", goodA: "4 1.0"}), "slot_b", nil},
		"names an own entry":            {whole(files{"loader/entries/own.CONF": "efi /efi/capsule/CAPSULE-0.9.efi"}), "slot_a", nil},
		"other things":                  {whole(files{goodB: "3 0.9", "EFI/capsule/notes.txt": "", "EFI/Linux/x.efi": "", "loader/random-seed": "", "loader/entries/memtest.conf": "x"}), "slot_a", nil},
	} {
		t.Run(name, func(t *testing.T) {
			e := plain(t, tc.before)
			untidy, err := Untidy(e.dir, tc.running)
			if err != nil || untidy != (len(tc.gone) > 0) {
				t.Errorf("untidy %t, %v", untidy, err)
			}
			did, err := e.tidy(tc.running)
			if err != nil || len(did) != len(tc.gone) {
				t.Errorf("%q, %v", did, err)
			}
			want := files{}
			for file, text := range tc.before {
				if !slices.Contains(tc.gone, file) {
					want[file] = text
				}
			}
			if diff := gocmp.Diff(want, readFiles(t, e.dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := Tidy(t.TempDir(), ""); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

func TestTidySays(t *testing.T) {
	did, err := plain(t, whole(files{goodB: "3 0.9", "FSCK0000.REC": "12345"})).tidy("slot_a")
	want := []string{`removed "FSCK0000.REC" (5 bytes) from the boot partition: a repair of the file system left it`}
	if diff := gocmp.Diff(want, did); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestEntries(t *testing.T) {
	e := plain(t, whole(files{
		"loader/entries/CAPSULE-SLOT_B+2-1.CONF": "5 0.9",
		goodB:                                    "",
		"loader/entries/capsule-slot_b+3-0.conf": "6 9.9", // no UKI
	}))
	got, err := Entries(e.dir)
	want := []Entry{
		{File: "capsule-slot_a.conf", Slot: "slot_a", Version: "1.0", UKI: "/EFI/capsule/capsule-1.0.efi", Generation: 4},
		{File: "CAPSULE-SLOT_B+2-1.CONF", Slot: "slot_b", Version: "0.9", UKI: "/EFI/capsule/capsule-0.9.efi", Generation: 5, Counted: true, Left: 2, Done: 1},
	}
	if diff := gocmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	e = plain(t, whole(files{lastB: "6 0.9", goodB: "5 0.9"}))
	if got, err := Entries(e.dir); err != nil || len(got) != 2 || got[1].Generation != 5 {
		t.Error("not what the loader takes of two:", got, err)
	}
	if got, err := Entries(t.TempDir()); len(got) != 0 || err != nil {
		t.Error(got, err)
	}
}

func TestTentative(t *testing.T) {
	for name, tc := range map[string]struct {
		before files
		file   string
		want   bool
	}{
		"on trial":                     {whole(files{triedB: "5 0.9"}), triedB, true},
		"last try":                     {whole(files{lastB: "5 0.9"}), lastB, true},
		"blessed":                      {whole(files{goodB: "5 0.9"}), triedB, false},
		"blessing cut":                 {whole(files{goodB: "5 0.9", triedB: "5 0.9"}), triedB, false},
		"blessing cut on the last try": {whole(files{goodB: "5 0.9", lastB: "5 0.9"}), lastB, false},
		"first start":                  {files{triedB: "5 0.9", kernels + "0.9.efi": "x"}, triedB, false},
		"nothing whole to go to":       {files{triedB: "5 0.9", goodA: "4 1.0", kernels + "0.9.efi": "x"}, triedB, false},
		"the other is exhausted":       {files{triedB: "5 0.9", "loader/entries/capsule-slot_a+0-3.conf": "4 0.9", kernels + "0.9.efi": "x"}, triedB, false},
		"condemned":                    {whole(nil), triedB, false},
		"older one beside it":          {whole(files{goodB: "3 0.9", lastB: "5 0.9"}), lastB, true},
		"damaged":                      {whole(files{triedB: ""}), triedB, true},
		"in capitals":                  {whole(files{triedB: "5 0.9"}), strings.ToUpper(triedB), true},
	} {
		if got, err := plain(t, tc.before).tentative(tc.file); got != tc.want || err != nil {
			t.Errorf("%s: %t, %v", name, got, err)
		}
	}
}

func TestInstallRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		version, uki string
		size         int64
		class        func(error) bool
	}{
		"short":       {"2.0", "MZ", 3, errdefs.IsDataLoss},
		"long":        {"2.0", "MZ!!", 3, errdefs.IsDataLoss},
		"empty":       {"2.0", "", 0, errdefs.IsInvalidArgument},
		"huge":        {"2.0", "", UKIMax + 1, errdefs.IsInvalidArgument},
		"odd version": {"../2.0", "MZ", 2, errdefs.IsInvalidArgument},
	} {
		before := whole(nil)
		e := plain(t, before)
		if _, err := e.install("slot_b", tc.version, strings.NewReader(tc.uki), tc.size); !tc.class(err) {
			t.Errorf("%s: %v", name, err)
		}
		if diff := gocmp.Diff(before, readFiles(t, e.dir)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestFrees(t *testing.T) {
	e := plain(t, whole(files{goodB: "3 0.9", kernels + "0.8.efi": "1234567"}))
	if got, err := Frees(e.dir, "slot_b"); got != int64(len("MZ b")+7) || err != nil {
		t.Error(got, err)
	}
	if got, err := Space(e.dir); got <= 0 || err != nil {
		t.Error(got, err)
	}
}

func FuzzEntry(f *testing.F) {
	f.Add("capsule-slot_a+3-0.conf", "title Capsule 1.0\nsort-key capsule\nversion 1\nefi /EFI/capsule/capsule-1.0.efi\n")
	f.Add("Capsule-Slot_B-12.conf", wastes["half"])
	f.Add("capsule-slot_b.conf", wastes["zeros"])
	f.Fuzz(func(t *testing.T, name, text string) {
		e, ok := parseName(name)
		if !ok || e.parseText([]byte(text)) != nil {
			return
		}
		again, err := e.text()
		if err != nil {
			t.Fatalf("%q was read but can't be written: %v", text, err)
		}
		back := Entry{File: e.File, Slot: e.Slot, Counted: e.Counted, Left: e.Left, Done: e.Done}
		if err := back.parseText(again); err != nil || back != e {
			t.Fatalf("%v, %v, %v", e, back, err)
		}
	})
}
