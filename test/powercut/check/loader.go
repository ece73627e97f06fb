package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// unlimited are the tries of an entry that isn't counted.
const unlimited = math.MaxInt

// A menuEntry is a boot entry as systemd-boot reads it. It is written down here
// once more, without internal/slot, which is what is checked.
type menuEntry struct {
	file             string // name in loader/entries
	sortKey, version string
	kernel           string // path below the ESP
	left, done       int    // tries
}

// menu are the loader's entries in its order: it starts the first one, as long as
// no variable of the firmware names another. Like the loader it passes over files
// that name no kernel, or one that isn't there (systemd's boot.c,
// boot_entry_add_type1).
func menu(esp string) ([]menuEntry, error) {
	dir := filepath.Join(esp, "loader/entries")
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var entries []menuEntry
	for _, f := range files {
		if !strings.HasSuffix(strings.ToLower(f.Name()), ".conf") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		e := parseMenuEntry(f.Name(), string(text))
		if e.kernel == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join(esp, e.kernel)); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("kernel of %s: %w", e.file, err)
		}
		entries = append(entries, e)
	}
	slices.SortStableFunc(entries, compareEntries)
	return entries, nil
}

var tries = regexp.MustCompile(`(?i)\+(\d+)(?:-(\d+))?\.conf$`)

func parseMenuEntry(file, text string) menuEntry {
	e := menuEntry{file: file, left: unlimited}
	if m := tries.FindStringSubmatch(file); m != nil {
		e.left, _ = strconv.Atoi(m[1])
		e.done, _ = strconv.Atoi(m[2]) // zero when it isn't there
	}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		value = strings.TrimSpace(value)
		switch key {
		case "sort-key":
			e.sortKey = value
		case "version":
			e.version = value
		case "efi":
			e.kernel = value
		}
	}
	return e
}

// compareEntries is the loader's order (systemd's boot.c, boot_entry_compare):
// those without tries last, then those with a sort key by it and by version, newest
// first, then by name, and at last by tries.
func compareEntries(a, b menuEntry) int {
	bySort := cmp.Or(less(a.sortKey == "", b.sortKey == ""), cmp.Compare(a.sortKey, b.sortKey))
	if a.sortKey != "" && b.sortKey != "" {
		bySort = cmp.Or(bySort, -compareVersions(a.version, b.version))
	}
	return cmp.Or(
		less(a.left == 0, b.left == 0),
		bySort,
		-cmp.Compare(tries.ReplaceAllString(a.file, ".conf"), tries.ReplaceAllString(b.file, ".conf")),
		-cmp.Compare(a.left, b.left),
		cmp.Compare(a.done, b.done),
	)
}

func less(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// compareVersions knows the numbers that our entries have; what is none comes
// before them.
func compareVersions(a, b string) int {
	numberA, errA := strconv.Atoi(a)
	numberB, errB := strconv.Atoi(b)
	return cmp.Or(-less(errA != nil, errB != nil), cmp.Compare(numberA, numberB), cmp.Compare(a, b))
}
