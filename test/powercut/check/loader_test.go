package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMenu(t *testing.T) {
	entry := func(version, kernel string) string {
		return "title Capsule\nsort-key capsule\nversion " + version + "\nefi " + kernel + "\n"
	}
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
	}{
		"newest first, by number": {map[string]string{
			"a.conf": entry("9", "/A.efi"), "b+3-0.conf": entry("10", "/b.efi"),
		}, "b+3-0.conf a.conf"},
		"exhausted last": {map[string]string{
			"a.conf": entry("1", "/a.efi"), "b+0-3.conf": entry("2", "/b.efi"),
		}, "a.conf b+0-3.conf"},
		"last try": {map[string]string{
			"a.conf": entry("1", "/a.efi"), "b+1-2.conf": entry("2", "/b.efi"),
		}, "b+1-2.conf a.conf"},
		"both exhausted": {map[string]string{
			"a+0.conf": entry("1", "/a.efi"), "b+0-3.conf": entry("2", "/b.efi"),
		}, "b+0-3.conf a+0.conf"},
		"no kernel, none named, an empty one, no entry": {map[string]string{
			"a.conf": entry("1", "/a.efi"), "b.conf": entry("2", "/none.efi"), "c.conf": "sort-key capsule\nversion 3\n", "d.conf": "",
			"e.conf.new": entry("4", "/b.efi"),
		}, "a.conf"},
		"without a sort key behind": {map[string]string{
			"a.conf": entry("1", "/a.efi"), "z.conf": "efi /b.efi\nversion 9\n",
		}, "a.conf z.conf"},
		"one entry, blessed halfway": {map[string]string{
			"a+2-1.conf": entry("1", "/a.efi"), "a.conf": entry("1", "/a.efi"),
		}, "a.conf a+2-1.conf"},
		"two counts": {map[string]string{
			"a+2-1.conf": entry("1", "/a.efi"), "a+3-0.conf": entry("1", "/a.efi"),
		}, "a+3-0.conf a+2-1.conf"},
	} {
		esp := t.TempDir()
		for _, kernel := range []string{"a.efi", "A.efi", "b.efi"} { // FAT doesn't tell case
			write(t, filepath.Join(esp, kernel), "kernel")
		}
		for file, text := range tc.files {
			write(t, filepath.Join(esp, "loader/entries", file), text)
		}
		entries, err := menu(esp)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range entries {
			got = append(got, e.file)
		}
		if diff := cmp.Diff(tc.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
