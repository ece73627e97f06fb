package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const repository = "../.."

func manual(t *testing.T) *book {
	t.Helper()
	b, err := read(repository)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Every link of the manual and of README.md leads somewhere, headings included.
func TestLinks(t *testing.T) {
	if err := manual(t).check(); err != nil {
		t.Error(err)
	}
}

// The table of contents has every page.
func TestContents(t *testing.T) {
	b := manual(t)
	contents := listed(b.find("docs/README.md"))
	for _, p := range b.pages {
		if strings.HasPrefix(p.file, decisionsFolder+"/") || p.file == "docs/README.md" {
			continue
		}
		if !strings.Contains(strings.Join(contents, "\n")+"\n", p.file+"\n") {
			t.Errorf("docs/README.md has no row for %s", p.file)
		}
	}
}

func TestBrokenLinks(t *testing.T) {
	root := t.TempDir()
	for file, text := range map[string]string{
		"README.md":      "[gone](docs/gone.md)\n",
		"docs/README.md": "# Contents\n\n[a](a.md#of-it-the-end) [b](a.md#nowhere) [c](https://example.com/x) [d](../../etc/passwd) ![e](no.png)\n",
		"docs/a.md":      "# A\n\n## Of it: the `end`\n\n[here](#a) [there](#b)\n",
	} {
		if err := put(root, file, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := read(root)
	if err != nil {
		t.Fatal(err)
	}
	err = b.check()
	if err == nil {
		t.Fatal("nothing is broken")
	}
	want := []string{`README.md:1: "docs/gone.md"`, `docs/README.md:3: "a.md#nowhere"`, `docs/README.md:3: "../../etc/passwd"`, `docs/README.md:3: "no.png"`, `docs/a.md:5: "#b"`}
	if got := strings.Split(err.Error(), "\n"); len(got) != len(want) {
		t.Errorf("%q", got)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("no %s in\n%v", w, err)
		}
	}
}

// The site is whole, needs nothing from elsewhere, and is the same each time.
func TestSite(t *testing.T) {
	out := t.TempDir()
	if err := run(repository, out); err != nil {
		t.Fatal(err)
	}
	again := t.TempDir()
	if err := run(repository, again); err != nil {
		t.Fatal(err)
	}
	pages := 0
	err := filepath.WalkDir(out, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(out, file)
		if err != nil {
			return err
		}
		first, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		second, err := os.ReadFile(filepath.Join(again, rel))
		if err != nil {
			return err
		}
		if !bytes.Equal(first, second) {
			t.Errorf("%s differs from one build to the next", rel)
		}
		if strings.HasSuffix(rel, ".html") {
			pages++
			checkPage(t, out, rel, string(first))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := len(manual(t).pages) + 1; pages != want {
		t.Errorf("%d pages, want %d", pages, want)
	}
}

var reference = regexp.MustCompile(`(?:href|src)="([^"]*)"`)

// checkPage follows what a page loads and leads to.
func checkPage(t *testing.T, out, page, html string) {
	t.Helper()
	for _, m := range reference.FindAllStringSubmatch(html, -1) {
		to, _, _ := strings.Cut(m[1], "#")
		outside := strings.Contains(to, "://")
		if outside && strings.Contains(m[0], "src=") {
			t.Errorf("%s loads %s", page, to)
		}
		if outside || to == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join(out, filepath.Dir(page), filepath.FromSlash(to))); err != nil {
			t.Errorf("%s leads to %s: %v", page, to, err)
		}
	}
}

// What is searched has each section with its text, and leads to it.
func TestIndex(t *testing.T) {
	out := t.TempDir()
	if err := run(repository, out); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(out, "index.js"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.TrimSuffix(strings.TrimPrefix(string(data), "const index = "), ";\n")
	var index []entry
	if err := json.Unmarshal([]byte(text), &index); err != nil {
		t.Fatal(err)
	}
	for _, e := range index {
		if e.Address == "workloads.html#files" {
			if e.Section != "Files" || !strings.Contains(e.Text, "Small configuration files") || !strings.Contains(e.Text, "greeting = good morning") {
				t.Errorf("%+v", e)
			}
			return
		}
	}
	t.Errorf("workloads.html#files is none of %d sections", len(index))
}
