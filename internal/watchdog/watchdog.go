// Package watchdog arms every watchdog that the machine has. Once opened they are
// never disarmed: the magic close is never written, so a process that dies or
// hangs restarts the machine, also in the middle of a shutdown.
//
// Nothing feeds by itself, on a timer of its own: that would only prove that the
// timer runs. Who owns a Watchdog feeds it at each turn of its loop, and for each
// proof that what it waits for gets on. So whatever hangs, the machine is reset
// within Timeout of the last sign of life.
package watchdog

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Timeout is after how long without food the machine restarts: the promise is
	// a minute from the hang on, of which Every may have passed already.
	Timeout = 50 * time.Second
	// Every is how often to feed. It leaves room for many late turns, and is shorter
	// than the time of a device that can't do Timeout.
	Every = 5 * time.Second
	// softLater lets the machine's own watchdog come first, for it remembers that it
	// reset the machine, which the kernel's can't. It is within the promise still.
	softLater = 3 * time.Second
)

// A Watchdog is all the machine's devices.
type Watchdog struct {
	dir string

	mu    sync.Mutex
	files map[string]*os.File
}

// New finds its devices in dir, which is /dev, once it's told to Open.
func New(dir string) *Watchdog { return &Watchdog{dir: dir, files: map[string]*os.File{}} }

// Open arms the devices that have appeared since the last call and names all that
// are armed, with the time that each of them waits.
func (w *Watchdog) Open() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	found, _ := filepath.Glob(filepath.Join(w.dir, "watchdog[0-9]*"))
	for _, name := range found {
		if w.files[name] != nil {
			continue
		}
		f, err := os.OpenFile(name, os.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil { // busy, or gone again
			continue
		}
		wait := Timeout
		if strings.HasPrefix(identity(name), "Software") {
			wait += softLater
		}
		// A device that can't do this time keeps its own.
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, int(wait/time.Second))
		w.files[name] = f
	}
	return w.names()
}

func (w *Watchdog) names() []string {
	var out []string
	for name, f := range w.files {
		text := name + " (" + identity(name)
		if s, err := unix.IoctlGetInt(int(f.Fd()), unix.WDIOC_GETTIMEOUT); err == nil {
			text += fmt.Sprintf(", %d s", s)
		}
		out = append(out, text+")")
	}
	slices.Sort(out)
	return out
}

func identity(device string) string {
	b, err := os.ReadFile(filepath.Join("/sys/class/watchdog", filepath.Base(device), "identity"))
	if err != nil {
		return "unknown"
	}
	return string(b[:max(len(b)-1, 0)])
}

// Feed puts the reset off by Timeout.
func (w *Watchdog) Feed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, f := range w.files {
		if _, err := f.Write([]byte{0}); err != nil {
			fmt.Fprintf(os.Stderr, "feed %s: %v\n", name, err)
		}
	}
}
