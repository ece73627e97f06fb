package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"capsule/internal/contexts"
)

// fanMax capsules are asked at a time.
const fanMax = 8

// fanMost capsules in one command line: far more than anybody operates from one
// laptop, and a bound on what is held until the table is whole.
const fanMost = 1000

// reading asks one capsule and gives what is to be shown of it. What it gives
// beside an error is shown too.
type reading func(ctx context.Context, a *app) (view, error)

// onMany lets a command be told several capsules.
func onMany(a *app, cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.everyone, "all", false, "ask all capsules that have a context here, in one table")
	return cmd
}

// many tells whether the command line means more capsules than one.
func (a *app) many() bool { return a.everyone || strings.Contains(a.named(), ",") }

// several are the capsules that are meant, each once.
func (a *app) several() ([]string, error) {
	if a.everyone {
		return a.allContexts()
	}
	var names []string
	for name := range strings.SplitSeq(a.named(), ",") {
		if name = strings.TrimSpace(name); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, contexts.ErrNone
	}
	return names, a.known(names)
}

func (a *app) allContexts() ([]string, error) {
	if a.capsule != "" {
		return nil, &failure{exitUsage, errors.New("--all and --capsule exclude each other"), "leave one of them out"}
	}
	store, err := contexts.Open("")
	if err != nil {
		return nil, err
	}
	names, err := store.List()
	if err == nil && len(names) == 0 {
		err = contexts.ErrNone
	}
	return names, err
}

// known refuses a name that can't be right before any capsule is asked: a change
// that was meant for three and made on two is worse than none.
func (a *app) known(names []string) error {
	if len(names) > fanMost {
		return &failure{exitUsage, fmt.Errorf("%d capsules at once; at most %d", len(names), fanMost), ""}
	}
	store, err := contexts.Open("")
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := store.Resolve(name); notFound(err) {
			return &failure{exitUsage, err, contextsHint}
		}
	}
	return nil
}

// read shows what the capsule answers, or what each of several does.
func (a *app) read(ctx context.Context, do reading) error {
	if !a.many() {
		v, err := do(ctx, a)
		if err != nil {
			return err
		}
		return a.ui.show(a.output, v)
	}
	names, err := a.several()
	if err != nil {
		return err
	}
	answers := a.askAll(ctx, names, do)
	if err := a.ui.show(a.output, merge(answers)); err != nil {
		return err
	}
	return a.failures(answers)
}

// answer is what became of one of several capsules.
type answer struct {
	capsule string
	view    view
	failed  *failure
}

// askAll asks the capsules side by side; one that is dead costs the others nothing.
func (a *app) askAll(ctx context.Context, names []string, do reading) []answer {
	answers := make([]answer, len(names))
	waiting := newRoll(a.ui, names)
	defer waiting.end()
	slots := make(chan struct{}, fanMax)
	var all sync.WaitGroup
	for i, name := range names {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			answers[i] = a.ask(ctx, name, do, waiting)
			waiting.strike(name)
		})
	}
	all.Wait()
	return answers
}

// ask runs a reading on one of several capsules, with a connection of its own.
func (a *app) ask(ctx context.Context, name string, do reading, waiting *roll) answer {
	err := waiting.lines(name)
	one := &app{ui: &ui{in: strings.NewReader(""), out: err, err: err}, capsule: name, output: a.output, command: a.command, begun: true, oneOf: true}
	defer one.close()
	v, failed := do(ctx, one)
	result := answer{capsule: name, view: v}
	if failed != nil {
		result.failed = one.explain(ctx, failed)
	}
	one.afterwards(ctx)
	return result
}

// failures prints what failed, a line for each capsule, and each next step once. The
// exit code is that of the failures where it is the same for all.
func (a *app) failures(answers []answer) error {
	var hints []string
	code := 0
	for _, one := range answers {
		if one.failed == nil {
			continue
		}
		a.ui.fail(&failure{err: fmt.Errorf("capsule %q: %s", one.capsule, sayOnce(one.capsule, one.failed.Error()))})
		if code == 0 {
			code = one.failed.code
		} else if code != one.failed.code {
			code = exitFailed
		}
		if h := one.failed.hint; !slices.Contains(hints, h) {
			hints = append(hints, h)
		}
	}
	if code == 0 {
		return nil
	}
	for _, hint := range hints {
		a.ui.hint(hint)
	}
	return remoteExit(code)
}

// sayOnce drops the capsule's name from a sentence that begins with it.
func sayOnce(capsule, text string) string {
	text = strings.TrimPrefix(text, fmt.Sprintf("capsule %q at ", capsule))
	return strings.TrimPrefix(text, "capsule at ")
}

// merge makes one view of those of several capsules, with a column that names them.
func merge(answers []answer) view {
	var all view
	for _, one := range answers {
		v := one.view
		for _, name := range v.names {
			all.names = append(all.names, one.capsule+" "+name)
		}
		for _, value := range v.values {
			all.values = append(all.values, tagged{one.capsule, value})
		}
		for _, document := range v.yaml {
			all.yaml = append(all.yaml, fmt.Appendf(nil, "# capsule: %s\n%s", one.capsule, document))
		}
		if v.text != "" {
			all.text += fmt.Sprintf("\ncapsule %s:\n%s", one.capsule, v.text)
		}
		all.empty = v.empty
		all.addTable(one.capsule, v)
	}
	return all
}

// addTable adds the rows of a capsule, its summary where it has one, and those of
// the tables below.
func (v *view) addTable(capsule string, from view) {
	below := from.below
	if from.summary != nil {
		from, below = *from.summary, nil
	}
	if len(v.columns) == 0 && len(from.columns) > 0 {
		v.columns = append([]string{"CAPSULE"}, from.columns...)
	}
	for _, row := range from.rows {
		v.rows = append(v.rows, append([]string{capsule}, row...))
	}
	if below == nil {
		return
	}
	if v.below == nil {
		v.below = &view{}
	}
	v.below.addTable(capsule, *below)
}

// tagged is a value with the capsule that it is from.
type tagged struct {
	capsule string
	value   any
}

// MarshalJSON puts the capsule before the value's own fields.
func (t tagged) MarshalJSON() ([]byte, error) {
	data, err := encodeJSON(t.value)
	if err != nil {
		return nil, err
	}
	name, err := json.Marshal(t.capsule)
	if err != nil {
		return nil, err
	}
	fields, ok := bytes.CutPrefix(data, []byte("{"))
	switch {
	case !ok:
		return fmt.Appendf(nil, `{"capsule":%s,"value":%s}`, name, data), nil
	case bytes.Equal(fields, []byte("}")):
		return fmt.Appendf(nil, `{"capsule":%s}`, name), nil
	}
	return fmt.Appendf(nil, `{"capsule":%s,%s`, name, fields), nil
}

// roll is who of several has not answered yet, on one line of a terminal, and the
// one writer of what they have to say meanwhile.
type roll struct {
	mu   sync.Mutex
	ui   *ui
	left []string
	line statusLine
}

func newRoll(u *ui, names []string) *roll {
	return &roll{ui: u, left: slices.Clone(names), line: statusLine{ui: u}}
}

func (r *roll) strike(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = slices.DeleteFunc(r.left, func(s string) bool { return s == name })
	if r.ui.errMoves && len(r.left) > 0 {
		r.line.set("no answer yet: " + strings.Join(r.left, ", "))
	}
}

func (r *roll) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.line.end()
}

// lines is a writer that puts a capsule's name before each line.
func (r *roll) lines(capsule string) io.Writer { return &lineWriter{roll: r, prefix: capsule + ": "} }

type lineWriter struct {
	roll   *roll
	prefix string
	part   []byte
}

// lineMax is where a line that does not end is cut.
const lineMax = 64 << 10

func (w *lineWriter) Write(p []byte) (int, error) {
	w.roll.mu.Lock()
	defer w.roll.mu.Unlock()
	w.part = append(w.part, p...)
	for {
		line, rest, ok := bytes.Cut(w.part, []byte("\n"))
		if !ok && len(w.part) < lineMax {
			return len(p), nil
		}
		w.part = rest
		w.roll.line.end()
		w.roll.ui.note("%s%s", w.prefix, line)
	}
}
