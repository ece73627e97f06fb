package campaign

import (
	"bytes"
	"fmt"
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

// Section gives a section's text.
func Section(page []byte, name string) (text []byte, ok bool) {
	from, to, ok := find(page, name)
	if !ok {
		return nil, false
	}
	return bytes.Clone(page[from:to]), true
}

// PutSection gives the page with another text in a section, at its end where it has no
// such section. A section stands between two marks; nothing else is touched.
func PutSection(page []byte, name string, text []byte) []byte {
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

// KeepSection gives a page that is written anew the section that the old one has.
func KeepSection(page, old []byte, name string) []byte {
	if text, ok := Section(old, name); ok {
		return PutSection(page, name, text)
	}
	return page
}
