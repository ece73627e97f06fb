//go:build linux

package main

import (
	"fmt"
	"strings"
	"testing"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/capture"
)

// thousands writes a number as help does.
func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

// The bounds that help quotes are those of the capsule.
func TestPcapHelp(t *testing.T) {
	help := strings.Join(strings.Fields(newCapsulePcapCommand(&app{ui: &ui{}}).Long), " ")
	for _, want := range []string{
		fmt.Sprintf("after %s packets, %.0f s or %d MiB unless", thousands(capture.PacketsDefault), capture.DurationDefault.Seconds(), capture.BytesDefault>>20),
		fmt.Sprintf("At most are %s packets, %.0f h and %d GiB", thousands(capture.PacketsMax), capture.DurationMax.Hours(), capture.BytesMax>>30),
	} {
		if !strings.Contains(help, want) {
			t.Errorf("help does not say %q", want)
		}
	}
}

func TestPcapText(t *testing.T) {
	for want, end := range map[string]*capsulev1.CaptureEnd{
		"interrupted after 10 B":                    nil,
		"3 packets, 10 B, ended by --count":         {Packets: 3, Reason: "packets"},
		"3 packets, 10 B, ended by --size; 5 more ": {Packets: 3, Reason: "bytes", Dropped: 5},
		"0 packets, 10 B, ended by --duration":      {Reason: "duration"},
	} {
		if got := pcapText(end, 10); !strings.HasPrefix(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
