package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/yuin/goldmark/ast"
)

//go:embed page.html
var pageHTML string

//go:embed site.css
var styleSheet []byte

//go:embed search.js
var searchScript []byte

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// entry is a section of a page that search finds.
type entry struct {
	Title   string `json:"t"`
	Section string `json:"s,omitempty"`
	Address string `json:"u"`
	Text    string `json:"x"`
}

// item is a line of the navigation.
type item struct {
	Title, Address string
	Current        bool
}

// address of a page in the site: docs/x.md is x.html, docs/README.md is index.html.
func address(file string) string {
	name := strings.TrimPrefix(file, "docs/")
	switch {
	case name == "README.md":
		return "index.html"
	case file == decisionsFolder:
		return "decisions/index.html"
	case strings.HasPrefix(file, "docs/") && strings.HasSuffix(name, ".md"):
		return strings.TrimSuffix(name, ".md") + ".html"
	case strings.HasPrefix(file, "docs/"):
		return name
	}
	return path.Join("repository", file) // what pages show of the rest of it
}

// up leads from a page to the site's folder.
func up(at string) string { return strings.Repeat("../", strings.Count(at, "/")) }

func (b *book) write(out string) error {
	b.addDecisions()
	copies := map[string]bool{}
	for _, p := range b.pages {
		for _, l := range p.links() {
			if b.find(l.file) == nil {
				copies[l.file] = true
			}
			to := up(address(p.file)) + address(l.file)
			if l.anchor != "" {
				to += "#" + l.anchor
			}
			*l.to = []byte(to)
		}
	}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	index := []entry{}
	for _, p := range b.pages {
		if err := b.writePage(out, p); err != nil {
			return err
		}
		index = append(index, p.entries()...)
	}
	for file := range copies {
		if err := b.copy(out, file); err != nil {
			return err
		}
	}
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"site.css": styleSheet, "search.js": searchScript, "index.js": fmt.Appendf(nil, "const index = %s;\n", data)} {
		if err := put(out, name, content); err != nil {
			return err
		}
	}
	return nil
}

// addDecisions makes the list of decisions, which a folder is on GitHub.
func (b *book) addDecisions() {
	if b.find(decisionsFolder) != nil {
		return
	}
	var list strings.Builder
	list.WriteString("# Decisions\n\nWhy it is so, one page each.\n\n")
	for _, p := range b.pages {
		if strings.HasPrefix(p.file, decisionsFolder+"/") {
			fmt.Fprintf(&list, "- [%s](decisions/%s)\n", p.title, path.Base(p.file))
		}
	}
	b.pages = append(b.pages, b.parse(decisionsFolder, []byte(list.String())))
}

func (b *book) writePage(out string, p *page) error {
	var body bytes.Buffer
	if err := b.markdown.Renderer().Render(&body, p.source, p.tree); err != nil {
		return err
	}
	at := address(p.file)
	var html bytes.Buffer
	err := pageTemplate.Execute(&html, map[string]any{
		"Title": p.title, "Up": up(at), "Pages": b.navigation(p),
		"Body": template.HTML(body.String()), //nolint:gosec // made by goldmark, which lets no HTML of a page through
	})
	if err != nil {
		return err
	}
	return put(out, at, html.Bytes())
}

// navigation has the pages in the order of docs/README.md, whatever it leaves out last.
func (b *book) navigation(current *page) []item {
	contents := b.find("docs/README.md")
	seen := map[string]bool{}
	var list []item
	add := func(p *page) {
		if p == nil || seen[p.file] || strings.HasPrefix(p.file, decisionsFolder+"/") {
			return
		}
		seen[p.file] = true
		list = append(list, item{p.title, up(address(current.file)) + address(p.file), p == current})
	}
	add(contents)
	if contents != nil {
		for _, name := range listed(contents) {
			add(b.find(name))
		}
	}
	for _, p := range b.pages {
		add(p)
	}
	return list
}

// listed are the pages that the table of contents names, in its order.
func listed(contents *page) []string {
	var list []string
	for _, row := range strings.Split(string(contents.source), "\n") {
		_, rest, ok := strings.Cut(row, "| [")
		if !ok {
			continue
		}
		if _, rest, ok = strings.Cut(rest, "]("); ok {
			name, _, _ := strings.Cut(rest, ")")
			list = append(list, path.Join("docs", name))
		}
	}
	return list
}

// entries are the page's sections, each from its heading to the next.
func (p *page) entries() []entry {
	at := address(p.file)
	list := []entry{{Title: p.title, Address: at}}
	for n := p.tree.FirstChild(); n != nil; n = n.NextSibling() {
		if h, ok := n.(*ast.Heading); ok {
			if h.Level > 1 {
				id, _ := h.AttributeString("id")
				list = append(list, entry{Title: p.title, Section: plain(h, p.source), Address: fmt.Sprintf("%s#%s", at, id)})
			}
			continue
		}
		last := &list[len(list)-1]
		last.Text = strings.TrimSpace(last.Text + " " + plain(n, p.source))
	}
	return list
}

// copy takes a file along that a page shows or leads to.
func (b *book) copy(out, file string) error {
	source := filepath.Join(b.root, filepath.FromSlash(file))
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return fmt.Errorf("link to the folder %q: the site has pages for files only", file)
	}
	data, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	return put(out, address(file), data)
}

func put(out, name string, data []byte) error {
	file := filepath.Join(out, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, data, fs.FileMode(0o644))
}
