package faults

import "testing"

func TestStandstill(t *testing.T) {
	const (
		start   = "\x1b[2J\x1b[01;01HBdsDxe: loading Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)\r\nBdsDxe: starting Boot0001\r\n"
		ordered = "[  139.444062] reboot: Restarting system\r\n"
		fault   = "[   12.345678] fault: process 1 stands still uptime=12.345\r\n"
		fired   = "[   62.001000] softdog: Initiating system reboot\r\n"
	)
	for _, test := range []struct {
		name, console       string
		stood, again, wrong bool
	}{
		{name: "nothing"},
		{name: "a restart", console: ordered + start},
		{name: "half a line", console: ordered + start + "[   12.345678] fault: process 1 stands still uptime=12.3"},
		{name: "stands", console: ordered + start + fault, stood: true},
		{name: "goes on saying things", console: start + fault + "capsule network: asking\r\n", stood: true},
		{name: "softdog", console: ordered + start + fault + fired + start, stood: true, again: true},
		{name: "the machine's own", console: ordered + start + fault + start, stood: true, again: true},
		{name: "later restarts", console: start + fault + start + "[   12.0] Kernel panic - not syncing\r\n" + start, stood: true, again: true},
		{name: "panic", console: start + fault + "[   13.0] Kernel panic - not syncing\r\n" + start, stood: true, again: true, wrong: true},
		{name: "in order", console: start + fault + ordered, stood: true, wrong: true},
	} {
		stood, again, err := Standstill([]byte(test.console))
		if stood != test.stood || again != test.again || (err != nil) != test.wrong {
			t.Errorf("%s: %v, %v, %v", test.name, stood, again, err)
		}
	}
}
