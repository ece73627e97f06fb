// Package watchdog feeds every watchdog that the machine has. Once opened they
// are never disarmed: the magic close is never written, so a process that dies or
// hangs restarts the machine, also in the middle of a shutdown.
package watchdog

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Timeout is after how long without food the machine restarts.
	Timeout = 60 * time.Second
	// feedEvery leaves room for a few late turns.
	feedEvery = 5 * time.Second
)

// A Watchdog feeds its devices for as long as its owner says that it's alive.
type Watchdog struct {
	dir string

	mu    sync.Mutex
	files map[string]*os.File
	until time.Time
}

// Start begins feeding the devices that Open finds. dir is /dev.
func Start(dir string, alive time.Duration) *Watchdog {
	w := &Watchdog{dir: dir, files: map[string]*os.File{}, until: time.Now().Add(alive)}
	go w.run()
	return w
}

// Open arms the devices that have appeared since the last call and names all that
// are armed.
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
		// A device that can't do this time keeps its own, which is never shorter than feedEvery in practice.
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, int(Timeout/time.Second))
		w.files[name] = f
	}
	return w.names()
}

func (w *Watchdog) names() []string {
	var out []string
	for name := range w.files {
		out = append(out, name+" ("+identity(name)+")")
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

// Alive says that the owner will speak again within d. After that the devices
// get no more food.
func (w *Watchdog) Alive(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.until = time.Now().Add(d)
}

func (w *Watchdog) run() {
	for range time.Tick(feedEvery) {
		w.feed(time.Now())
	}
}

func (w *Watchdog) feed(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.After(w.until) {
		return
	}
	for name, f := range w.files {
		if _, err := f.Write([]byte{0}); err != nil {
			fmt.Fprintf(os.Stderr, "feed %s: %v\n", name, err)
		}
	}
}
