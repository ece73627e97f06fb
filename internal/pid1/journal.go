package pid1

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"capsule/internal/console"
)

const earlyMax = 256 // lines kept until there's a file for them

// A journal takes what PID 1 says: to the kernel's ring always, to a file as soon
// as there's a place for it, and to the consoles.
type journal struct {
	mu    sync.Mutex
	kmsg  *os.File
	file  *logFile
	early []string
	dir   string
	quiet bool // the screen shows the state: only what is important may disturb it
}

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
	j.dir = dir
	j.file = newLogFile(filepath.Join(dir, "pid1.log"))
	for _, line := range j.early {
		_, _ = j.file.Write([]byte(line))
	}
	j.early = nil
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
	if j.file != nil {
		_, _ = j.file.Write([]byte(line))
	} else if len(j.early) < earlyMax {
		j.early = append(j.early, line)
	}
}

// hush leaves the screen to the state that serve shows.
func (j *journal) hush(quiet bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.quiet = quiet
}

// close lets go of the file system that the file is on.
func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file != nil {
		j.file.Close()
	}
	j.file = nil
}
