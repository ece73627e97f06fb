package console

import (
	"fmt"
	"strings"
	"time"
)

// Sizes of the screen in characters: the least that a console has, but for its last
// row, which is left to lines of others.
const (
	screenColumns = 80
	screenRows    = 24
	labelColumns  = 12
)

// Rows that parts of the screen take at most: something is left for each.
const (
	problemRows    = 8
	problemRowsFew = 5 // beside a code to claim with
	networkRows    = 2
	diskRows       = 8
	eventRows      = 5
	eventRowsMin   = 3
	barColumns     = 14
	nameColumns    = 24
	stateColumns   = 10
)

// picture is the screen as a terminal draws it: over the one before, from the top, each
// line to its end, so that nothing flickers. The code stands at the right as a QR code
// too. The cursor is hidden, and left below, where Line and the kernel go on; wipe takes
// away what they wrote.
func picture(s State, m Status, wipe bool) string {
	code := quickCode(s.Code)
	lines := screenLines(s, m, len(code))
	var b strings.Builder
	b.WriteString("\x1b[?25l\x1b[H")
	for i := range screenRows {
		if i < len(lines) {
			b.WriteString(colour(lines[i]))
		}
		b.WriteString("\x1b[K\r\n")
	}
	if wipe {
		b.WriteString("\x1b[J")
	}
	for i, line := range code {
		fmt.Fprintf(&b, "\x1b[%d;%dH%s", i+2, qrColumn, line)
	}
	fmt.Fprintf(&b, "\x1b[%d;1H", screenRows+1)
	return b.String()
}

// Marks of a line that tells of a problem; nothing else begins in the first column.
const (
	markCritical = "!!"
	markWarning  = "! "
)

func colour(line string) string {
	for mark, code := range map[string]string{markCritical: "1;31", markWarning: "33"} {
		if strings.HasPrefix(line, mark) {
			return "\x1b[" + code + "m" + line + "\x1b[0m"
		}
	}
	return line
}

// screenLines are at most 24 lines of at most 80 columns, of ASCII: what is wrong
// first. Beside a QR code of so many rows, which begin in the second, they are narrow.
func screenLines(s State, m Status, codeRows int) []string {
	p := &page{narrow: codeRows + 1}
	p.header(s, m)
	p.problems(s, m)
	p.identity(s, m)
	for _, f := range m.Fills {
		p.say(f.Name, f.text(), 1)
	}
	events := m.Events[max(0, len(m.Events)-eventRows):]
	p.workloads(m.Workloads, min(len(events), eventRowsMin))
	p.events(events)
	return p.lines
}

// page is filled from the top.
type page struct {
	lines  []string
	narrow int // rows that have a QR code at their right, from the top
}

func (p *page) room() int { return screenRows - len(p.lines) }

// width of the next line.
func (p *page) width() int {
	if len(p.lines) > 0 && len(p.lines) < p.narrow {
		return qrColumn - 2
	}
	return screenColumns
}

// put adds a line, cut to what there is room for.
func (p *page) put(text string) {
	if p.room() > 0 {
		p.lines = append(p.lines, strings.TrimRight(cut(ascii(text), p.width()), " "))
	}
}

// space parts what follows from what stands above.
func (p *page) space() {
	if n := len(p.lines); n > 0 && p.lines[n-1] != "" {
		p.put("")
	}
}

// say adds a text with a label, in at most so many lines: what is cut ends in dots.
func (p *page) say(label, text string, most int) {
	p.indented(fmt.Sprintf("  %-10s", label), text, most)
}

// indented breaks a text between words below its first line's beginning.
func (p *page) indented(begin, text string, most int) {
	text = strings.Join(strings.Fields(ascii(text)), " ")
	if text == "" {
		return
	}
	for ; text != "" && most > 0 && p.room() > 0; most-- {
		width := p.width() - len(begin)
		line, rest := breakLine(text, width)
		if rest != "" && (most == 1 || p.room() == 1) {
			line, rest = cut(text, width), ""
		}
		p.put(begin + line)
		begin, text = strings.Repeat(" ", len(begin)), rest
	}
}

// breakLine takes as many words as fit; a longer word is cut.
func breakLine(text string, width int) (line, rest string) {
	if len(text) <= width {
		return text, ""
	}
	at := strings.LastIndexByte(text[:width+1], ' ')
	if at <= 0 {
		return text[:width], text[width:]
	}
	return text[:at], text[at+1:]
}

// cut ends what is too long in dots.
func cut(text string, width int) string {
	const dots = "..."
	if len(text) <= width {
		return text
	}
	return text[:width-len(dots)] + dots
}

// ascii is a text in which each rune takes one column, whatever font the screen has.
func ascii(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r < ' ' || r == 0x7f:
			return ' '
		case r > 0x7f:
			return '?'
		}
		return r
	}, strings.ReplaceAll(text, "…", "..."))
}

func (p *page) header(s State, m Status) {
	name := "  " + orText(s.Name, "starting")
	about := "Capsule " + strings.TrimSpace(s.Version+"  "+s.Slot)
	if m.Up > 0 {
		about += "  up " + minutes(m.Up)
	}
	about = cut(ascii(about), screenColumns/2)
	name = cut(ascii(name), screenColumns-2-len(about))
	p.put(name + strings.Repeat(" ", screenColumns-1-len(name)-len(about)) + about)
	p.space()
}

// minutes is a time since, as exact as anybody asks for.
func minutes(d time.Duration) string {
	d = d.Truncate(time.Minute)
	const day = 24 * time.Hour
	switch {
	case d >= day:
		return fmt.Sprintf("%d d %d h", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%d min", d/time.Minute)
}

// problems are those of the state, which is told at once, then all others.
func (p *page) problems(s State, m Status) {
	begin := len(p.lines)
	if s.Mode == "recovery" {
		p.indented(markCritical+" ", "RECOVERY MODE, nothing runs: "+s.Reason, networkRows+1)
	}
	if s.Network != "" {
		p.indented(markWarning+" ", "network: "+s.Network, networkRows)
	}
	if s.Left > 0 {
		p.indented(markWarning+" ", "update: "+tentative(s), networkRows)
	}
	most := problemRows
	if s.Code != "" {
		most = problemRowsFew
	}
	for i, one := range m.Problems {
		if len(p.lines)-begin >= most-1 && i < len(m.Problems)-1 || len(p.lines)-begin >= most {
			p.put(fmt.Sprintf("%s and %d more: capsulectl capsule info", markWarning, len(m.Problems)-i))
			break
		}
		mark := markWarning + " "
		if one.Critical {
			mark = markCritical + " "
		}
		p.indented(mark, one.What, 1)
		p.indented("   > ", one.Next, 1)
	}
	p.space()
}

func (p *page) identity(s State, m Status) {
	p.say("address", strings.Join(append([]string{orText(s.Address, "none yet")}, m.Addresses...), "  "), networkRows)
	p.say("claim", s.Claim, 1)
	if s.Code != "" {
		p.say("code", s.Code, 1)
		p.say("", nextStep(s)+orText(s.Name, "NAME"), 1)
	}
	p.say("", s.Unclaimable, networkRows)
	if s.Claim != "claimed" {
		const least = 4
		p.say("key", breakable(s.Fingerprint, p.width()-labelColumns), least)
	}
	if s.Mode == "installer" {
		p.say("mode", "INSTALLER", 1)
		p.say("reason", s.Reason, networkRows)
	}
	for line := range strings.Lines(s.Disks) {
		p.say("disk", line, diskRows/2)
	}
}

// nextStep is the command for whoever reads the code. The installer claims on its way.
func nextStep(s State) string {
	if s.Mode == "installer" {
		return "capsulectl install "
	}
	return "capsulectl claim "
}

// breakable lets a fingerprint go on in the next line, in equal pieces.
func breakable(fingerprint string, width int) string {
	groups := strings.SplitAfter(fingerprint, ":")
	each := 8
	if each*5 > width {
		each = 4
	}
	var b strings.Builder
	for i, group := range groups {
		if i > 0 && i%each == 0 {
			b.WriteByte(' ')
		}
		b.WriteString(group)
	}
	return b.String()
}

// text is a bar and its figures; what is not full never shows as 100 %.
func (f Fill) text() string {
	if f.Size <= 0 {
		return ""
	}
	const part, giga = 100, 1 << 30
	share := min(max(float64(f.Used)/float64(f.Size), 0), 1)
	full := int(share * barColumns)
	return fmt.Sprintf("[%s%s] %3d %% of %.1f GiB", strings.Repeat("#", full), strings.Repeat(".", barColumns-full), int(share*part), float64(f.Size)/giga)
}

// workloads tells of those that are bad one by one, and of the others as far as there
// is room above so many events.
func (p *page) workloads(all []Workload, events int) {
	if len(all) == 0 {
		return
	}
	p.space()
	var bad, good []Workload
	run := 0
	for _, w := range all {
		if w.Bad {
			bad = append(bad, w)
			continue
		}
		good = append(good, w)
		if w.State == running {
			run++
		}
	}
	text := fmt.Sprintf("%d of %d run", run, len(all))
	if len(bad) > 0 {
		text += fmt.Sprintf(", %d not as they should be", len(bad))
	}
	p.say("workloads", text, 1)
	keep := 0
	if events > 0 {
		keep = events + 1 // and a line between
	}
	for i, w := range bad {
		if p.room() <= keep+1 && i < len(bad)-1 {
			p.put(fmt.Sprintf("%*sand %d more: capsulectl get", labelColumns, "", len(bad)-i))
			return
		}
		p.put(strings.Repeat(" ", labelColumns) + row(w))
	}
	p.indented(strings.Repeat(" ", labelColumns), names(good), p.room()-keep)
}

func row(w Workload) string {
	text := fmt.Sprintf("%-*s %-*s", nameColumns, cut(ascii(w.Name), nameColumns), stateColumns, w.State)
	return text + " " + strings.Join(strings.Fields(w.Message), " ")
}

const running = "running" // of State

// names of those that are well; what is no matter of course is said.
func names(list []Workload) string {
	var all []string
	for _, w := range list {
		if w.State == running {
			all = append(all, w.Name)
		} else {
			all = append(all, fmt.Sprintf("%s (%s)", w.Name, w.State))
		}
	}
	return strings.Join(all, ", ")
}

func (p *page) events(list []string) {
	if len(list) == 0 || p.room() < 2 {
		return
	}
	p.space()
	label := "events"
	for _, e := range list[max(0, len(list)-p.room()):] {
		p.say(label, e, 1)
		label = ""
	}
}
