package pid1

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"capsule/internal/console"
)

const waitingMax = 256 // lines kept until there's a file for them, or its disk has time

// A journal takes what PID 1 says: to the kernel's ring always, to a file as soon
// as there's a place for it, and to the consoles. Whoever says something never waits
// for the file's disk: the watchdog would take that for a hang.
type journal struct {
	mu    sync.Mutex
	kmsg  *os.File
	lines chan string   // for the file; nil once closed
	done  chan struct{} // closed when all lines are written
	dir   string
	quiet bool // the screen shows the state: only what is important may disturb it
}

func newJournal() *journal { return &journal{lines: make(chan string, waitingMax)} }

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
	go func(lines <-chan string, done chan<- struct{}) {
		defer close(done)
		file := newLogFile(filepath.Join(dir, "pid1.log"))
		defer file.Close()
		for line := range lines {
			_, _ = file.Write([]byte(line))
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
		fmt.Fprintf(j.kmsg, "<%d>capsuled: %s\n", 6, text)
	}
	where := console.Everywhere
	if j.quiet && level > 3 {
		where = console.Serial
	}
	console.Line(where, fmt.Sprintf("capsule %9.3fs %s", uptime().Seconds(), text))
	line := fmt.Sprintf("%12.3f %d %s\n", uptime().Seconds(), level, text)
	select {
	case j.lines <- line:
	default: // the disk hangs, or all is over
	}
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
