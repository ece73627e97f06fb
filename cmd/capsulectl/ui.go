package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"
)

// The rules of the terminal:
//   - stdout holds what was asked for, and nothing else; stderr holds the rest.
//   - Colour and moving bars are for terminals only; NO_COLOR turns colour off, and
//     TERM=dumb both.
//   - A failure is one "error: …" line, then one "hint: …" line where a next
//     step is known.
type ui struct {
	in       io.Reader
	out, err io.Writer
	inTTY    bool
	outTTY   bool
	errMoves bool // lines on stderr can be written over
	outMoves bool
	colour   bool
}

// Forms of --output.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatName  = "name"
)

var formats = []string{formatTable, formatJSON, formatYAML, formatName}

func newTerminal() *ui {
	u := &ui{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	u.inTTY = term.IsTerminal(int(os.Stdin.Fd()))
	u.outTTY = term.IsTerminal(int(os.Stdout.Fd()))
	dumb := os.Getenv("TERM") == "dumb"
	u.outMoves = u.outTTY && !dumb
	u.errMoves = term.IsTerminal(int(os.Stderr.Fd())) && !dumb
	_, no := os.LookupEnv("NO_COLOR")
	u.colour = u.outMoves && !no
	return u
}

// printf writes what was asked for.
func (u *ui) printf(format string, args ...any) { fmt.Fprintf(u.out, format, args...) }

// note tells what happens, beside what was asked for.
func (u *ui) note(format string, args ...any) { fmt.Fprintf(u.err, format+"\n", args...) }

// prompt asks for a line, where there is somebody to ask.
func (u *ui) prompt(text string) {
	if u.inTTY {
		fmt.Fprint(u.err, text)
	}
}

func (u *ui) warn(text string) { u.note("warning: %s", text) }

func (u *ui) fail(f *failure) {
	u.note("%s %s", u.paint(red, "error:"), f.err)
	u.hint(f.hint)
}

// hint tells the next step, where one is known.
func (u *ui) hint(text string) {
	if text != "" {
		u.note("hint: %s", text)
	}
}

const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (u *ui) paint(colour, text string) string {
	if !u.colour || colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// view is a list of things in every form of --output.
type view struct {
	columns []string
	rows    [][]string
	names   []string
	values  []any    // messages, or what encoding/json takes
	yaml    [][]byte // documents; nil makes them from values
	single  bool     // one thing and not a list of one
	empty   string   // said on stderr when there is nothing
	below   *view    // a table of other things, under the first
	summary *view    // the same in rows, where several capsules are shown
	text    string   // said under the tables
}

// show prints a view in the form that --output asks for.
func (u *ui) show(format string, v view) error {
	switch format {
	case formatName:
		for _, name := range v.names {
			u.printf("%s\n", name)
		}
	case formatJSON:
		data, err := v.json()
		if err != nil {
			return err
		}
		u.printf("%s\n", data)
	case formatYAML:
		return u.showYAML(v)
	default:
		if err := u.showTables(v); err != nil {
			return err
		}
		u.printf("%s", v.text)
	}
	return nil
}

// showTables prints the tables that hold something, with a line between them.
func (u *ui) showTables(v view) error {
	switch {
	case v.below == nil && len(v.rows) == 0 && v.empty != "":
		u.note("%s", v.empty)
		return nil
	case v.below == nil:
		return u.table(v.columns, v.rows)
	case len(v.rows) == 0:
		return u.showTables(*v.below)
	}
	if err := u.table(v.columns, v.rows); err != nil {
		return err
	}
	u.printf("\n")
	return u.showTables(*v.below)
}

func (u *ui) showYAML(v view) error {
	documents := v.yaml
	for i := 0; documents == nil && i < len(v.values); i++ {
		data, err := encodeJSON(v.values[i])
		if err != nil {
			return err
		}
		if data, err = yaml.JSONToYAML(data); err != nil {
			return err
		}
		v.yaml = append(v.yaml, data)
	}
	for i, d := range v.yaml {
		if i > 0 {
			u.printf("---\n")
		}
		u.printf("%s", d)
	}
	return nil
}

func (v view) json() ([]byte, error) {
	parts := make([][]byte, 0, len(v.values))
	for _, value := range v.values {
		data, err := encodeJSON(value)
		if err != nil {
			return nil, err
		}
		parts = append(parts, data)
	}
	all := bytes.Join(parts, []byte(","))
	if !v.single {
		all = fmt.Appendf(nil, "[%s]", all)
	}
	var out bytes.Buffer
	err := json.Indent(&out, all, "", "  ")
	return out.Bytes(), err
}

// encodeJSON goes through json.Compact because protojson varies its spaces.
func encodeJSON(value any) ([]byte, error) {
	m, ok := value.(proto.Message)
	if !ok {
		return json.Marshal(value)
	}
	data, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = json.Compact(&out, data)
	return out.Bytes(), err
}

// table prints rows under a heading, in columns as wide as they need.
func (u *ui) table(columns []string, rows [][]string) error {
	var plain bytes.Buffer
	w := tabwriter.NewWriter(&plain, 0, 0, 3, ' ', 0)
	if len(columns) > 0 {
		fmt.Fprintln(w, strings.Join(columns, "\t"))
	}
	for _, row := range rows {
		for i, cell := range row {
			if cell == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(plain.String()) {
		u.printf("%s\n", u.colourPhase(strings.TrimRight(line, " \n")))
	}
	return nil
}

// screenSize is that of a terminal that does not tell its own, as a serial line.
const screenColumns, screenRows = 80, 24

// screen is a table that is shown again and again over the terminal.
type screen struct {
	ui    *ui
	begun bool
}

// show draws a table, and a line below it if there is one to be said, as far as the
// terminal has room.
func (s *screen) show(v view, below string) error {
	var text bytes.Buffer
	if err := (&ui{out: &text}).table(v.columns, v.rows); err != nil {
		return err
	}
	columns, rows, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil || columns < 1 || rows < 1 {
		columns, rows = screenColumns, screenRows
	}
	if !s.begun { // what stood there is not written over, but scrolled up
		s.ui.printf("%s", strings.Repeat("\n", rows))
		s.begun = true
	}
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	lines = lines[:min(len(lines), max(1, rows-2))]
	if below != "" {
		lines = append(lines, below)
	}
	for i, line := range lines {
		if runes := []rune(line); len(runes) > columns {
			lines[i] = string(runes[:columns])
		}
	}
	// From the top, each line to its end, then the rest: nothing flickers.
	s.ui.printf("\x1b[H%s\x1b[K\x1b[J", strings.Join(lines, "\x1b[K\r\n"))
	return nil
}

// end leaves the terminal below the table.
func (s *screen) end() {
	if s.begun {
		s.ui.printf("\n")
	}
}

// phaseColours are painted over a finished table, where they can't shift it.
var phaseColours = map[string]string{
	"running": green, "failed": red, "back-off": yellow, "pulling": yellow, "starting": yellow,
	"ready": green, "in-use": green,
}

func (u *ui) colourPhase(line string) string {
	if !u.colour {
		return line
	}
	for _, word := range strings.Fields(line) {
		if c := phaseColours[word]; c != "" {
			return strings.Replace(line, word, u.paint(c, word), 1)
		}
	}
	return line
}

// plainEvery is between lines of progress where there is no terminal.
const plainEvery = 5 * time.Second

// progress shows long work: a bar on a terminal, a line now and then elsewhere.
type progress struct {
	ui        *ui
	bars      *mpb.Progress
	bar       *mpb.Bar
	step      string
	stepBegun time.Time
	last      time.Time
}

func (u *ui) progress() *progress {
	p := &progress{ui: u}
	if u.errMoves {
		p.bars = mpb.New(mpb.WithOutput(u.err), mpb.WithWidth(60))
	}
	return p
}

// set shows that done of total bytes of a step are through; total 0 is unknown.
func (p *progress) set(step string, done, total int64) {
	if total > 0 {
		total = max(total, done)
	}
	if step != p.step {
		p.endBar()
		p.stepBegun = time.Now()
	}
	if p.bars == nil {
		p.line(step, done, total)
		return
	}
	if step != p.step {
		p.step = step
		p.bar = p.newBar(step)
	}
	p.bar.SetTotal(total, false)
	p.bar.SetCurrent(done)
}

// newBar is one that ends when its step does, whatever its total was thought to be.
func (p *progress) newBar(step string) *mpb.Bar {
	begun := p.stepBegun
	return p.bars.AddBar(0,
		mpb.PrependDecorators(decor.Name(step, decor.WCSyncSpaceR), decor.Any(func(s decor.Statistics) string { return amount(s.Current, s.Total) }, decor.WCSyncSpace)),
		mpb.AppendDecorators(decor.Percentage(decor.WCSyncSpace), decor.Any(func(s decor.Statistics) string { return pace(s.Current, s.Total, time.Since(begun)) }, decor.WCSyncSpace)))
}

func (p *progress) line(step string, done, total int64) {
	if step == p.step && time.Since(p.last) < plainEvery {
		return
	}
	p.step, p.last = step, time.Now()
	text := step
	if done > 0 || total > 0 {
		text += ": " + amount(done, total)
	}
	if speed := pace(done, total, time.Since(p.stepBegun)); speed != "" {
		text += ", " + speed
	}
	p.ui.note("%s", text)
}

// amount is how much of a step is through.
func amount(done, total int64) string {
	if total <= 0 {
		return size(done)
	}
	return size(done) + " of " + size(total)
}

// paceAfter is how long a step goes on before its speed tells anything.
const paceAfter = time.Second

// pace is how fast a step goes on average, and the time that it has left.
func pace(done, total int64, took time.Duration) string {
	if done <= 0 || took < paceAfter {
		return ""
	}
	rate := float64(done) / took.Seconds()
	text := size(int64(rate)) + "/s"
	if total <= done {
		return text
	}
	left := time.Duration(float64(total-done) / rate * float64(time.Second))
	switch {
	case left >= 100*time.Hour:
		return fmt.Sprintf("%s, %dd left", text, int(left.Hours()/24))
	case left >= time.Hour:
		return fmt.Sprintf("%s, %dh%02dm left", text, int(left.Hours()), int(left.Minutes())%60)
	}
	return fmt.Sprintf("%s, %v left", text, max(time.Second, left.Round(time.Second)))
}

// endBar shows a step as done.
func (p *progress) endBar() {
	if p.bar != nil && !p.bar.Completed() {
		p.bar.SetTotal(-1, true)
	}
}

// done shows the last step as done, and ends.
func (p *progress) done() {
	p.endBar()
	p.end()
}

// end leaves the terminal in order, with the last step as far as it came; it may
// be called more than once.
func (p *progress) end() {
	if p.bars == nil {
		return
	}
	if p.bar != nil && !p.bar.Completed() {
		p.bar.Abort(false)
	}
	p.bars.Wait()
	p.bars = nil
}

// statusLine is one line that changes on a terminal, and lines elsewhere.
type statusLine struct {
	ui   *ui
	text string
}

func (s *statusLine) set(text string) {
	if text == s.text || text == "" {
		return
	}
	s.text = text
	if !s.ui.errMoves {
		s.ui.note("%s", text)
		return
	}
	fmt.Fprintf(s.ui.err, "\r\x1b[K%s", s.cut(text))
}

// end removes the line from a terminal.
func (s *statusLine) end() {
	if s.ui.errMoves && s.text != "" {
		fmt.Fprint(s.ui.err, "\r\x1b[K")
		s.text = ""
	}
}

func (s *statusLine) cut(text string) string {
	width, _, err := term.GetSize(int(os.Stderr.Fd()))
	if runes := []rune(text); err == nil && width > 1 && len(runes) >= width {
		return string(runes[:width-1])
	}
	return text
}

// password reads a secret without showing it, or one line of a pipe.
func (u *ui) password(prompt string) (string, error) {
	fmt.Fprint(u.err, prompt)
	defer fmt.Fprintln(u.err)
	data, err := term.ReadPassword(int(os.Stdin.Fd()))
	return string(data), err
}

// size is a number of bytes for people.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// age is how long ago something was, for people.
func age(t, now time.Time) string {
	d := now.Sub(t)
	switch {
	case t.IsZero() || t.Unix() == 0:
		return ""
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
