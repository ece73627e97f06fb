package pid1

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// keysSignal is what the kernel sends for Ctrl-Alt-Del.
const keysSignal = unix.SIGINT

// A second Ctrl-Alt-Del confirms the first one within keysMax. One that comes sooner than
// keysMin is the first, held down: keyboards repeat it every 33 ms.
const (
	keysMin = 400 * time.Millisecond
	keysMax = 5 * time.Second
)

// takeKeys has the kernel ask this process about Ctrl-Alt-Del, instead of resetting the
// machine at once.
func takeKeys() error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		return fmt.Errorf("take Ctrl-Alt-Del from the kernel: %w", err)
	}
	return nil
}

// keys is when Ctrl-Alt-Del was last pressed, by the time since the kernel's start.
type keys struct {
	last    time.Duration
	pressed bool
}

// press tells whether this press confirms the one before, or is to be asked about.
func (k *keys) press(now time.Duration) (confirms, asks bool) {
	gap, before := now-k.last, k.pressed
	k.last, k.pressed = now, true
	confirms = before && gap >= keysMin && gap <= keysMax
	return confirms, !before || gap > keysMax
}

// confirmed asks for a second press at the first.
func (m *machine) confirmed(k *keys) bool {
	confirms, asks := k.press(uptime())
	if asks {
		m.log.important("Ctrl-Alt-Del: press it once more within %v to restart the machine; nothing is done otherwise", keysMax)
	}
	if confirms {
		m.log.important("Ctrl-Alt-Del was pressed twice")
	}
	return confirms
}
