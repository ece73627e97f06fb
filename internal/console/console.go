// Package console shows the machine's state on what is plugged into it: a status
// screen on a monitor, plain lines on serial lines, so that their logs stay
// readable. It only ever writes; nothing is read from a console.
package console

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// A State is what the console tells.
type State struct {
	Name    string // capsule-a3f2
	Address string // what to connect to; empty while there's none
	Claim   string // claimed or unclaimed
	// Code claims it, as long as that can be done; else Unclaimable says why not.
	Code, Unclaimable string
	Fingerprint       string // of its key, "3f2a:91c0:…"
	Version           string
	Slot              string
	Mode              string // normal, recovery or installer
	Reason            string // of a recovery, or what the operator should know
	Network           string // why there's no address
	Ready             bool   // the API answers
	Disks             string // that a capsule can be installed on, or can't: one a line

	Left time.Duration // until the running system is rolled back unless it's confirmed; 0: it's confirmed
}

var shown struct {
	sync.Mutex
	State
	any bool
}

// Show brings the state to all consoles when it differs from what they show.
func Show(s State) {
	shown.Lock()
	defer shown.Unlock()
	if shown.any && shown.State == s {
		return
	}
	before, up := shown.State, uptime()
	shown.State, shown.any = s, true
	for _, name := range active() {
		text := changes(before, s, up)
		if isScreen(name) {
			text = screen(s)
		}
		put(filepath.Join("/dev", name), text)
	}
}

// writeMax is how long a console may take a text: one that somebody stopped
// with Ctrl-S or Scroll Lock takes none for ever, and callers hold locks.
const writeMax = 2 * time.Second

// put writes to a console what it takes.
func put(device, text string) {
	if text == "" {
		return
	}
	f, err := os.OpenFile(device, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_ = f.SetWriteDeadline(time.Now().Add(writeMax)) // terminals have one
	_, _ = io.WriteString(f, text)
}

// Where a Line goes.
type Where bool

// Serial is for the course of things; Everywhere also writes over the screen, until
// its next change.
const (
	Serial     Where = false
	Everywhere Where = true
)

// Line prints one line.
func Line(where Where, text string) {
	shown.Lock()
	defer shown.Unlock()
	for _, name := range active() {
		if isScreen(name) && where == Serial {
			continue
		}
		put(filepath.Join("/dev", name), plain(text)+"\r\n")
	}
}

// active lists the kernel's consoles.
func active() []string {
	b, err := os.ReadFile("/sys/class/tty/console/active")
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// isScreen tells a virtual terminal (tty0) from a serial line (ttyS0, hvc0).
func isScreen(name string) bool {
	rest, ok := strings.CutPrefix(name, "tty")
	return ok && rest != "" && rest[0] >= '0' && rest[0] <= '9'
}

// Sizes of the screen in characters: the least that a console has.
const (
	screenColumns = 80
	screenRows    = 25
	labelColumns  = 13
)

// screen is the whole picture, from a cleared screen. The code stands to the right
// as a QR code too.
func screen(s State) string {
	code := quickCode(s.Code)
	width := screenColumns - labelColumns
	if code != nil {
		width = qrColumn - 1 - labelColumns
	}
	var b strings.Builder
	b.WriteString("\x1b[2J\x1b[H\r\n")
	n := 1
	for _, row := range rows(s, width) {
		label := row[0]
		for _, line := range wrap(plain(row[1]), width) {
			if n++; n >= screenRows {
				break
			}
			fmt.Fprintf(&b, "  %-10s %s\r\n", label, line)
			label = ""
		}
	}
	for i, line := range code {
		fmt.Fprintf(&b, "\x1b[%d;%dH%s", i+2, qrColumn, line)
	}
	if code != nil {
		fmt.Fprintf(&b, "\x1b[%d;1H", max(n+1, len(code)+2))
	}
	return b.String()
}

// wrap breaks a text between words; a longer word is cut.
func wrap(text string, width int) (lines []string) {
	if utf8.RuneCountInString(text) <= width {
		return []string{text}
	}
	line := ""
	for _, word := range strings.Fields(text) {
		for {
			joined := strings.TrimSpace(line + " " + word)
			if utf8.RuneCountInString(joined) <= width {
				line = joined
				break
			}
			if line == "" {
				head := []rune(word)
				lines, word = append(lines, string(head[:width])), string(head[width:])
				continue
			}
			lines, line = append(lines, line), ""
		}
	}
	return append(lines, line)
}

func rows(s State, width int) [][2]string {
	out := [][2]string{{"Capsule", orText(s.Name, "starting")}}
	add := func(label, text string) {
		if text != "" {
			out = append(out, [2]string{label, text})
		}
	}
	add("address", orText(s.Address, "none yet"))
	add("network", s.Network)
	add("claim", s.Claim)
	add("code", s.Code)
	if s.Code != "" {
		add("", nextStep(s)+orText(s.Name, "NAME"))
	}
	add("", s.Unclaimable)
	add("key", breakable(s.Fingerprint, width))
	add("version", strings.TrimSpace(s.Version+"  "+s.Slot))
	if s.Mode != "" && s.Mode != "normal" {
		add("mode", strings.ToUpper(s.Mode))
	}
	add("reason", s.Reason)
	for line := range strings.Lines(s.Disks) {
		add("disk", strings.TrimSpace(line))
	}
	if s.Left > 0 {
		add("update", tentative(s))
	}
	return out
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

// tentative says what becomes of a system that isn't confirmed, and how to keep it.
func tentative(s State) string {
	return fmt.Sprintf("to %s: not confirmed, rolls back in %v: capsulectl capsule update confirm",
		orText(s.Version, "this version"), s.Left.Round(time.Second))
}

// reminders are when a line tells of a tentative system again; the screen counts
// down by itself.
var reminders = []time.Duration{5 * time.Minute, time.Minute}

// reminds says whether there's a new line to tell about a tentative system.
func reminds(before, left time.Duration) bool {
	if left <= 0 {
		return false
	}
	return before <= 0 || slices.ContainsFunc(reminders, func(at time.Duration) bool { return before > at && left <= at })
}

// changes are the lines for what is new. When the API answers, one line holds all
// that a lab needs to connect, and the time since the kernel started.
func changes(before, s State, up time.Duration) string {
	var b strings.Builder
	say := func(format string, args ...any) {
		b.WriteString(plain(fmt.Sprintf(format, args...)) + "\r\n")
	}
	if s.Network != before.Network && s.Network != "" {
		say("capsule network: %s", s.Network)
	}
	if (s.Mode != before.Mode || s.Reason != before.Reason) && (s.Reason != "" || s.Mode == "recovery") {
		say("capsule mode: %s: %s", s.Mode, s.Reason)
	}
	switch {
	case reminds(before.Left, s.Left):
		say("capsule update: %s", tentative(s))
	case before.Left > 0 && s.Left <= 0:
		say("capsule update: %s is confirmed", orText(s.Version, "this version"))
	}
	if s.Disks != before.Disks {
		for line := range strings.Lines(s.Disks) {
			say("capsule disk: %s", strings.TrimSpace(line))
		}
	}
	if s.Code != before.Code && s.Code != "" {
		say("capsule claim: code=%s name=%s key=%s", s.Code, s.Name, s.Fingerprint)
	}
	if s.Unclaimable != before.Unclaimable && s.Unclaimable != "" {
		say("capsule claim: %s", s.Unclaimable)
	}
	readyNow := s.Ready && (!before.Ready || s.Address != before.Address || s.Name != before.Name || s.Claim != before.Claim)
	if readyNow {
		say("capsule ready: name=%s address=%s claim=%s version=%s slot=%s uptime=%.3f", s.Name, orText(s.Address, "-"), orText(s.Claim, "-"), orText(s.Version, "-"), orText(s.Slot, "-"), up.Seconds())
	}
	return b.String()
}

// uptime is the time since the kernel started, a suspended machine's included.
func uptime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // can't fail on Linux
	return time.Duration(t.Nano())
}

func orText(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// plain keeps control characters of foreign text (a DHCP server's, a workload's)
// from the terminal.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return ' '
		}
		return r
	}, text)
}
