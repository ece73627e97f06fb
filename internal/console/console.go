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
	Status
	any   bool
	drawn string        // on screens
	wiped time.Duration // Status.Up when all else on them was wiped away
	news  news
}

// Show brings the state to all consoles when it differs from what they show.
func Show(s State) {
	shown.Lock()
	defer shown.Unlock()
	if shown.any && shown.State == s {
		return
	}
	before := shown.State
	shown.State, shown.any = s, true
	toSerial(changes(before, s, uptime()))
	redraw()
}

// ShowStatus brings to all consoles how the machine does: to screens all of it, to
// serial lines what is newly wrong.
func ShowStatus(s Status) {
	shown.Lock()
	defer shown.Unlock()
	shown.Status = s
	toSerial(shown.news.lines(s.Problems, time.Now()))
	redraw()
}

func toSerial(text string) {
	for _, name := range active() {
		if !isScreen(name) {
			put(filepath.Join("/dev", name), text)
		}
	}
}

// redraw brings the picture to the screens, if it is another one. Lines of others below
// it stay for up to a minute.
func redraw() {
	wipe := shown.wiped == 0 || shown.wiped != shown.Up
	text := picture(shown.State, shown.Status, wipe)
	if text == shown.drawn {
		return
	}
	shown.drawn, shown.wiped = picture(shown.State, shown.Status, false), shown.Up
	for _, name := range active() {
		if isScreen(name) {
			putScreen(filepath.Join("/dev", name), text)
		}
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
	if where == Everywhere {
		shown.drawn = ""
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
