package pid1

import (
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"capsule/internal/kmod"
	"capsule/internal/lastboot"
)

// Of linux/input-event-codes.h.
const (
	eventKey = 1
	keyPower = 116

	inputEventLen = 24 // struct input_event on 64-bit machines
)

// watchButtons makes each power button that there is turn the machine off.
func (m *machine) watchButtons(pressed chan<- os.Signal) {
	files, _ := filepath.Glob(sysfs + "/class/input/event*")
	for _, file := range files {
		m.watchButton(filepath.Base(file), pressed)
	}
}

// newButton does the same for one that appears.
func (m *machine) newButton(ev kmod.Uevent, pressed chan<- os.Signal) {
	if name, ok := strings.CutPrefix(ev.Env["DEVNAME"], "input/event"); ok && ev.Action == "add" {
		m.watchButton("event"+name, pressed)
	}
}

func (m *machine) watchButton(name string, pressed chan<- os.Signal) {
	keys, err := os.ReadFile(filepath.Join(sysfs, "class/input", name, "device/capabilities/key"))
	if err != nil || !hasKey(string(keys), keyPower) {
		return
	}
	if _, twice := m.buttons.LoadOrStore(name, true); twice {
		return
	}
	f, err := os.OpenFile(filepath.Join("/dev/input", name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		m.buttons.Delete(name)
		return
	}
	go func() {
		defer m.buttons.Delete(name)
		defer f.Close()
		if waitPower(f) {
			m.log.say("the power button was pressed")
			m.going(lastboot.PowerOff, "powered off by its button")
			pressed <- unix.SIGUSR2
		}
	}()
}

// hasKey looks a key up in the kernel's list of what a device can send: words of
// 64 bits in hex, the highest first.
func hasKey(words string, key int) bool {
	f := strings.Fields(words)
	at := len(f) - 1 - key/64
	if at < 0 {
		return false
	}
	w, err := strconv.ParseUint(f[at], 16, 64)
	return err == nil && w>>(key%64)&1 == 1
}

// waitPower reads events until the button goes down, or the device is gone.
func waitPower(r io.Reader) bool {
	b := make([]byte, inputEventLen)
	for {
		if _, err := io.ReadFull(r, b); err != nil {
			return false
		}
		le := binary.LittleEndian
		if le.Uint16(b[16:]) == eventKey && le.Uint16(b[18:]) == keyPower && le.Uint32(b[20:]) == 1 {
			return true
		}
	}
}
