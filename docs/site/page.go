package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/text"
)

// page is one file of the manual.
type page struct {
	file   string // in the repository, with "/"
	source []byte
	tree   ast.Node
	title  string
	// anchors of its headings.
	anchors map[string]bool
}

// book is the manual, and README.md of the repository, whose links are checked with it.
type book struct {
	root     string
	markdown goldmark.Markdown
	pages    []*page // sorted by file
	readme   *page
}

func read(root string) (*book, error) {
	b := &book{root: root, markdown: goldmark.New(goldmark.WithExtensions(extension.Table), goldmark.WithParserOptions(parser.WithAutoHeadingID()))}
	for _, pattern := range []string{"docs/*.md", "docs/decisions/*.md"} {
		files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(pattern)))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			rel, err := filepath.Rel(root, file)
			if err != nil {
				return nil, err
			}
			p, err := b.page(filepath.ToSlash(rel))
			if err != nil {
				return nil, err
			}
			b.pages = append(b.pages, p)
		}
	}
	if len(b.pages) == 0 {
		return nil, fmt.Errorf("no page in %q", filepath.Join(root, "docs"))
	}
	slices.SortFunc(b.pages, func(a, c *page) int { return strings.Compare(a.file, c.file) })
	var err error
	b.readme, err = b.page("README.md")
	return b, err
}

func (b *book) page(file string) (*page, error) {
	source, err := os.ReadFile(filepath.Join(b.root, filepath.FromSlash(file)))
	if err != nil {
		return nil, err
	}
	return b.parse(file, source), nil
}

func (b *book) parse(file string, source []byte) *page {
	ids := &anchors{used: map[string]bool{}}
	p := &page{file: file, source: source, anchors: ids.used}
	p.tree = b.markdown.Parser().Parse(text.NewReader(source), parser.WithContext(parser.NewContext(parser.WithIDs(ids))))
	for n := p.tree.FirstChild(); n != nil; n = n.NextSibling() {
		if h, ok := n.(*ast.Heading); ok && h.Level == 1 {
			p.title = plain(h, source)
			break
		}
	}
	if p.title == "" {
		p.title = path.Base(file)
	}
	return p
}

// anchors names headings as GitHub does, so that a link is right there and here.
type anchors struct{ used map[string]bool }

// Generate makes the name of a heading.
func (a *anchors) Generate(value []byte, _ ast.NodeKind) []byte {
	name := strings.Map(func(r rune) rune {
		switch {
		case r == ' ' || r == '-':
			return '-'
		case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_':
			return unicode.ToLower(r)
		}
		return -1
	}, strings.TrimSpace(string(value)))
	unique := name
	for i := 1; a.used[unique]; i++ {
		unique = fmt.Sprintf("%s-%d", name, i)
	}
	a.used[unique] = true
	return []byte(unique)
}

// Put takes a name that was given by hand.
func (a *anchors) Put(value []byte) { a.used[string(value)] = true }

// plain is the text of what a node holds.
func plain(n ast.Node, source []byte) string {
	var b strings.Builder
	_ = ast.Walk(n, func(n ast.Node, entering bool) (ast.WalkStatus, error) { //nolint:errcheck // it has none of its own
		if !entering {
			if n.Type() == ast.TypeBlock {
				b.WriteByte(' ')
			}
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.Text:
			b.Write(n.Segment.Value(source))
			if n.SoftLineBreak() || n.HardLineBreak() {
				b.WriteByte(' ')
			}
		case *ast.String:
			b.Write(n.Value)
		case *ast.FencedCodeBlock, *ast.CodeBlock:
			for i := range n.Lines().Len() {
				line := n.Lines().At(i)
				b.Write(line.Value(source))
			}
		}
		return ast.WalkContinue, nil
	})
	return strings.Join(strings.Fields(b.String()), " ")
}
