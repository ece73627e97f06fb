package console

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var full = State{Name: "capsule-a3f2", Address: "10.0.2.15", Claim: "claimed", Version: "1.2.3", Slot: "slot_a", Mode: "normal", Ready: true}

func TestChanges(t *testing.T) {
	notReady, waiting, recovery := full, full, full
	notReady.Ready = false
	waiting.Ready, waiting.Network = false, "no DHCP answer\x1b[2J"
	recovery.Mode, recovery.Reason = "recovery", "/perm can't be read"
	left := func(d time.Duration) State { s := full; s.Left = d; return s }
	for name, tc := range map[string]struct {
		before, after State
		want          string
	}{
		"ready":          {State{}, full, "capsule ready: name=capsule-a3f2 address=10.0.2.15 claim=claimed version=1.2.3 slot=slot_a uptime=7.250\r\n"},
		"nothing new":    {full, full, ""},
		"not ready yet":  {State{}, notReady, ""},
		"no escape code": {State{}, waiting, "capsule network: no DHCP answer [2J\r\n"},
		"tentative":      {full, left(9*time.Minute + 49800*time.Millisecond), "capsule update: to 1.2.3: not confirmed, rolls back in 9m50s: capsulectl capsule update confirm\r\n"},
		"counts down":    {left(9 * time.Minute), left(8 * time.Minute), ""},
		"half is over":   {left(301 * time.Second), left(300 * time.Second), "capsule update: to 1.2.3: not confirmed, rolls back in 5m0s: capsulectl capsule update confirm\r\n"},
		"half was over":  {left(300 * time.Second), left(290 * time.Second), ""},
		"last minute":    {left(time.Hour), left(50 * time.Second), "capsule update: to 1.2.3: not confirmed, rolls back in 50s: capsulectl capsule update confirm\r\n"},
		"confirmed":      {left(time.Minute), full, "capsule update: 1.2.3 is confirmed\r\n"},
		"recovery":       {full, recovery, "capsule mode: recovery: /perm can't be read\r\n"},
	} {
		if diff := cmp.Diff(tc.want, changes(tc.before, tc.after, 7250*time.Millisecond)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestScreen(t *testing.T) {
	want := "\x1b[2J\x1b[H\r\n  Capsule    capsule-a3f2\r\n  address    10.0.2.15\r\n  claim      claimed\r\n  version    1.2.3  slot_a\r\n"
	if diff := cmp.Diff(want, screen(full)); diff != "" {
		t.Error(diff)
	}
}

func TestScreenCountsDown(t *testing.T) {
	s := full
	s.Left = 590 * time.Second
	want := "  update     to 1.2.3: not confirmed, rolls back in 9m50s: capsulectl capsule update confirm\r\n"
	if got := screen(s); !strings.Contains(got, want) {
		t.Errorf("%q lacks %q", got, want)
	}
}

func TestIsScreen(t *testing.T) {
	for name, want := range map[string]bool{"tty0": true, "tty1": true, "ttyS0": false, "ttyAMA0": false, "hvc0": false, "tty": false} {
		if isScreen(name) != want {
			t.Error(name)
		}
	}
}
