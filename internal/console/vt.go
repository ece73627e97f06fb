package console

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// screenFile is the virtual terminal that is drawn on. It stays open: what is set for
// it is forgotten when nobody has it open.
var screenFile *os.File

// HasScreen tells whether a monitor could show anything: without a framebuffer the
// kernel draws for nobody.
func HasScreen() bool { return hasScreen("/sys") }

func hasScreen(sysfs string) bool {
	consoles, _ := filepath.Glob(filepath.Join(sysfs, "class/vtconsole/vtcon*")) // the pattern is good
	for _, c := range consoles {
		name, _ := os.ReadFile(filepath.Join(c, "name")) // absent is none
		bound, _ := os.ReadFile(filepath.Join(c, "bind"))
		if strings.TrimSpace(string(bound)) == "1" && len(name) > 0 && !strings.Contains(string(name), "dummy") {
			return true
		}
	}
	return false
}

// putScreen writes to a virtual terminal what it takes.
func putScreen(device, text string) {
	if screenFile == nil {
		f, err := os.OpenFile(device, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			return
		}
		deaf(f)
		screenFile = f
	}
	_ = screenFile.SetWriteDeadline(time.Now().Add(writeMax)) // terminals have one
	if _, err := io.WriteString(screenFile, text); err != nil {
		screenFile.Close()
		screenFile = nil
	}
}

// deaf makes a terminal show no keys that are pressed, and stop for none.
func deaf(f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		if err != nil {
			return // no terminal, which shows no keys
		}
		t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG
		t.Iflag &^= unix.IXON | unix.IXOFF
		_ = unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
	})
}
