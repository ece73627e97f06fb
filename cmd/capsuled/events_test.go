package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"capsule/internal/uplink"
)

func TestPermFill(t *testing.T) {
	var fill permFill
	for i, tc := range []struct {
		used uint64
		kind string
	}{
		{10, ""}, {79, ""}, {80, "perm-warn"}, {79, ""}, {81, ""}, {78, ""}, {77, "perm-ok"}, {77, ""},
		{99, "perm-full"}, {95, ""}, {94, "perm-critical"}, {50, "perm-ok"}, {100, "perm-full"},
	} {
		kind, text := fill.turn(100<<20, (100-tc.used)<<20)
		if kind != tc.kind || kind != "" && !strings.Contains(text, "% full") {
			t.Errorf("step %d, %d %%: %q, %q, want %q", i, tc.used, kind, text, tc.kind)
		}
	}
	if kind, _ := fill.turn(0, 0); kind != "" { // it can't be read
		t.Errorf("got %q", kind)
	}
}

// A flapping link fills no ring, and how it ends up is told.
func TestUplinkNews(t *testing.T) {
	var news uplinkNews
	now, told := time.Unix(1e9, 0), 0
	for i := range int(24 * time.Hour / machineEvery) {
		now = now.Add(machineEvery)
		if news.turn([]string{"up", "down"}[i%2], now) {
			told++
		}
	}
	if most := uplinkBurst + int(24*time.Hour/uplinkAgain); told < uplinkBurst || told > most {
		t.Errorf("%d events of a day, want at most %d", told, most)
	}
	for range int(uplinkAgain/machineEvery) + 1 {
		now = now.Add(machineEvery)
		news.turn("at last", now)
	}
	if news.said != "at last" {
		t.Errorf("last said %q", news.said)
	}
}

func TestMachineSentences(t *testing.T) {
	for want, got := range map[string]string{
		"has 192.168.1.5/24, fd00::5/64":                             uplinkText(uplink.State{Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.5/24"), netip.MustParsePrefix("fd00::5/64")}}),
		"has no address: no cable":                                   uplinkText(uplink.State{Message: "no cable"}),
		"has no address":                                             uplinkText(uplink.State{}),
		"its clock was set back by 1.5s, by time server 10.0.0.1":    clockText(-1500*time.Millisecond, "10.0.0.1"),
		"its clock was set forward by 1h0m0s, by time server a.test": clockText(time.Hour, "a.test"),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
