package faults

import (
	"bytes"
	"fmt"
	"regexp"
)

var (
	// standstill is what the stand-in of capsuled prints before process 1 stands still.
	standstill = regexp.MustCompile(`fault: process 1 stands still uptime=[0-9]+\.[0-9]+\r?\n`)
	// firmwareStarts is OVMF's first line at each start.
	firmwareStarts = []byte("BdsDxe: loading ")
	// byItself is in what a kernel prints that restarts without a watchdog's help.
	byItself = regexp.MustCompile(`Kernel panic|reboot: `)
)

// Standstill reads from a console whether process 1 stood still, and whether the
// machine has started again since. It's an error when something else than a
// watchdog did that.
func Standstill(console []byte) (stood, again bool, err error) {
	at := standstill.FindIndex(console)
	if at == nil {
		return false, false, nil
	}
	since, _, again := bytes.Cut(console[at[1]:], firmwareStarts)
	if why := byItself.Find(since); why != nil {
		return true, again, fmt.Errorf("process 1 stood still, and then there was %q: no watchdog", why)
	}
	return true, again, nil
}
