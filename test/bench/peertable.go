package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// comparison is a table of the capsule beside the peers.
type comparison struct{ rows [][]string }

// none stands where there is nothing to measure.
var none = math.NaN()

// add adds figures, of which less is better, and how many times the capsule's the
// peers' are. format is that of one figure.
func (c *comparison) add(what, format string, capsule float64, peer [len(peers)]float64) {
	cells := []string{what, figure(format, capsule)}
	for _, p := range peer {
		cells = append(cells, figure(format, p))
	}
	for _, p := range peer {
		ratio := ""
		switch r := p / capsule; {
		case capsule <= 0 || p <= 0 || math.IsNaN(r):
		case r < 1:
			ratio = fmt.Sprintf("%.2f", r)
		case r < 10:
			ratio = fmt.Sprintf("%.1f", r)
		default:
			ratio = fmt.Sprintf("%.0f", r)
		}
		cells = append(cells, ratio)
	}
	c.rows = append(c.rows, cells)
}

func figure(format string, value float64) string {
	if math.IsNaN(value) {
		return "—"
	}
	return fmt.Sprintf(format, value)
}

// say adds what has no figures to divide.
func (c *comparison) say(what, capsule string, peer [len(peers)]string) {
	cells := append([]string{what, capsule}, peer[:]...)
	c.rows = append(c.rows, append(cells, make([]string, len(peers))...))
}

// String is the table in Markdown.
func (c *comparison) String() string {
	head := []string{"", "capsule"}
	for _, p := range peers {
		head = append(head, p.title)
	}
	for _, p := range peers {
		head = append(head, p.title+" ÷ capsule")
	}
	var b strings.Builder
	for i, cells := range append([][]string{head}, c.rows...) {
		b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
		if i == 0 {
			b.WriteString(strings.Repeat("|---", len(cells)) + "|\n")
		}
	}
	return b.String()
}

// Lines of the page around what -write replaces.
func figuresBegin(part string) string { return "<!-- figures: " + part + " -->\n" }
func figuresEnd(part string) string   { return "<!-- end: " + part + " -->\n" }

const page = "docs/benchmarks.md"

// tell prints a comparison as it stands on the page, and writes it there if that is
// asked for.
func (b *bench) tell(part string, c *comparison) error {
	text := "\n" + b.measuredOn + "\n\n" + c.String() + "\n"
	fmt.Print(text)
	if !b.write {
		return nil
	}
	path := filepath.Join(b.repository, page)
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	changed, err := replaceFigures(string(old), part, text)
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	return os.WriteFile(path, []byte(changed), 0o644)
}

// replaceFigures replaces what stands between the lines of a part.
func replaceFigures(page, part, text string) (string, error) {
	before, rest, ok := strings.Cut(page, figuresBegin(part))
	_, after, ended := strings.Cut(rest, figuresEnd(part))
	if !ok || !ended {
		return "", fmt.Errorf("no lines %q and %q", figuresBegin(part), figuresEnd(part))
	}
	return before + figuresBegin(part) + text + figuresEnd(part) + after, nil
}

// each does something with all peers at once: a peer whose instructions are counted
// does not mind another one on this computer.
func each[T any](ctx context.Context, do func(context.Context, peer) (T, error)) (all [len(peers)]T, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var errs [len(peers)]error
	var group sync.WaitGroup
	for i, p := range peers {
		group.Go(func() {
			all[i], errs[i] = do(ctx, p)
			if errs[i] != nil {
				cancel()
			}
		})
	}
	group.Wait()
	for i, e := range errs { // the first that was no cancelling comes first
		if e != nil && !errors.Is(e, context.Canceled) {
			return all, fmt.Errorf("%s: %w", peers[i].title, e)
		}
	}
	return all, errors.Join(errs[:]...)
}

// column is one figure of all peers.
func column[T any](all [len(peers)]T, of func(T) float64) (figures [len(peers)]float64) {
	for i, v := range all {
		figures[i] = of(v)
	}
	return figures
}
