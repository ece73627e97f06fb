// Package section puts what a program tells into a page that others write in, too: its
// part stands between two marks, and nothing else is touched.
package section

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
)

func marks(name string) (begin, end []byte) {
	return fmt.Appendf(nil, "<!-- begin: %s -->\n", name), fmt.Appendf(nil, "<!-- end: %s -->\n", name)
}

// find gives where a section's text is, without the marks.
func find(page []byte, name string) (from, to int, ok bool) {
	begin, end := marks(name)
	i := bytes.Index(page, begin)
	if i < 0 {
		return 0, 0, false
	}
	from = i + len(begin)
	n := bytes.Index(page[from:], end)
	return from, from + n, n >= 0
}

// Get gives a section's text.
func Get(page []byte, name string) (text []byte, ok bool) {
	from, to, ok := find(page, name)
	if !ok {
		return nil, false
	}
	return bytes.Clone(page[from:to]), true
}

// Put gives the page with another text there, at its end where it has no such section.
func Put(page []byte, name string, text []byte) []byte {
	text = append(bytes.TrimRight(bytes.Clone(text), "\n"), '\n')
	if from, to, ok := find(page, name); ok {
		return bytes.Join([][]byte{page[:from], text, page[to:]}, nil)
	}
	begin, end := marks(name)
	if len(bytes.TrimSpace(page)) > 0 {
		page = append(bytes.TrimRight(bytes.Clone(page), "\n"), "\n\n"...)
	}
	return bytes.Join([][]byte{page, begin, text, end}, nil)
}

// Keep gives a page that is written anew the section that the old one has.
func Keep(page, old []byte, name string) []byte {
	if text, ok := Get(old, name); ok {
		return Put(page, name, text)
	}
	return page
}

// Checkout is the version of the code in a folder, for what is told of its runs.
func Checkout(dir string) string {
	cmd := exec.Command("git", "describe", "--tags", "--always")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
