package pid1

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"capsule/internal/console"
	"capsule/internal/lastboot"
)

const ringName = "capsuled: " // before each line in the kernel's ring

const waitingMax = 256 // lines kept until there's a file for them, or its disk has time

// A journal takes what PID 1 says: to the kernel's ring always, to a file as soon
// as there's a place for it, and to the consoles. Whoever says something never waits
// for the file's disk: the watchdog would take that for a hang.
type journal struct {
	mu    sync.Mutex
	kmsg  *os.File
	lines chan said     // for the file; nil once closed
	done  chan struct{} // closed when all lines are written
	dir   string
	quiet bool // the screen shows the state: only what is important may disturb it
}

// said is a line, which has no time of day yet: the clock may be set before there is
// a file for it.
type said struct {
	up   time.Duration // since the machine's start
	text string
}

func newJournal() *journal { return &journal{lines: make(chan said, waitingMax)} }

// open starts writing to the kernel's ring.
func (j *journal) open() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.kmsg, _ = os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
}

// keep names the folder for log files, and writes down what came before.
func (j *journal) keep(dir string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.dir, j.done = dir, make(chan struct{})
	go func(lines <-chan said, done chan<- struct{}) {
		defer close(done)
		file := newLogFile(filepath.Join(dir, "pid1.log"))
		defer file.Close()
		boot := lastboot.ThisBoot()
		for l := range lines {
			_, _ = file.Write(keptLine(l.up, boot, 0, fmt.Sprintf("%.3fs %s", l.up.Seconds(), l.text)))
		}
	}(j.lines, j.done)
}

// say is for the course of things, important for what an operator must see.
func (j *journal) say(format string, args ...any)       { j.write(6, format, args...) }
func (j *journal) important(format string, args ...any) { j.write(3, format, args...) }

func (j *journal) write(level int, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.kmsg != nil {
		fmt.Fprintf(j.kmsg, "<%d>%s%s\n", 6, ringName, text)
	}
	where := console.Everywhere
	if j.quiet && level > 3 {
		where = console.Serial
	}
	console.Line(where, fmt.Sprintf("capsule %9.3fs %s", uptime().Seconds(), text))
	select {
	case j.lines <- said{uptime(), text}:
	default: // the disk hangs, or all is over
	}
}

// keptLine is a line of something that happened so long after the machine's start.
func keptLine(up time.Duration, boot string, number uint64, text string) []byte {
	return []byte(lastboot.Line{Time: time.Now().Add(up - uptime()), Boot: boot, Number: number, Text: text}.String())
}

// hush leaves the screen to the state that serve shows.
func (j *journal) hush(quiet bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.quiet = quiet
}

// close lets go of the file system that the file is on. It waits for the disk.
func (j *journal) close() {
	j.mu.Lock()
	lines, done := j.lines, j.done
	j.lines = nil
	j.mu.Unlock()
	if lines != nil {
		close(lines)
	}
	if done != nil {
		<-done
	}
}
