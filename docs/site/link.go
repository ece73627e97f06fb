package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/yuin/goldmark/ast"
)

// decisionsFolder has no page of its own; the site makes one.
const decisionsFolder = "docs/decisions"

// link is one of a page, to a place in the repository.
type link struct {
	to     *[]byte // as written, to be changed
	file   string  // in the repository
	anchor string
	line   int
}

// links are those of a page that lead to files and headings; not those to other sites.
func (p *page) links() []link {
	var list []link
	_ = ast.Walk(p.tree, func(n ast.Node, entering bool) (ast.WalkStatus, error) { //nolint:errcheck // it has none of its own
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.Link:
			list = p.appendLink(list, &n.Destination)
		case *ast.Image:
			list = p.appendLink(list, &n.Destination)
		}
		return ast.WalkContinue, nil
	})
	return list
}

func (p *page) appendLink(list []link, to *[]byte) []link {
	u, err := url.Parse(string(*to))
	if err != nil || u.Scheme != "" || u.Host != "" {
		return list
	}
	l := link{to: to, file: p.file, anchor: u.Fragment, line: 1}
	if u.Path != "" {
		l.file = path.Join(path.Dir(p.file), u.Path)
	}
	if i := bytes.Index(p.source, *to); i >= 0 {
		l.line += bytes.Count(p.source[:i], []byte("\n"))
	}
	return append(list, l)
}

// check finds every link that leads nowhere.
func (b *book) check() error {
	var errs []error
	for _, p := range append([]*page{b.readme}, b.pages...) {
		for _, l := range p.links() {
			if why := b.broken(l); why != "" {
				errs = append(errs, fmt.Errorf("%s:%d: %q: %s", p.file, l.line, *l.to, why))
			}
		}
	}
	return errors.Join(errs...)
}

// broken says why a link leads nowhere, or "".
func (b *book) broken(l link) string {
	if l.file == ".." || strings.HasPrefix(l.file, "../") {
		return "is outside of the repository"
	}
	if _, err := os.Stat(filepath.Join(b.root, filepath.FromSlash(l.file))); err != nil {
		return "there is no such file"
	}
	if l.anchor == "" {
		return ""
	}
	target := b.find(l.file)
	if target == nil && l.file == b.readme.file {
		target = b.readme
	}
	switch {
	case target == nil:
		return "is no page, and has no headings"
	case !target.anchors[l.anchor]:
		return fmt.Sprintf("%s has no heading %q", l.file, l.anchor)
	}
	return ""
}

func (b *book) find(file string) *page {
	for _, p := range b.pages {
		if p.file == file {
			return p
		}
	}
	return nil
}
