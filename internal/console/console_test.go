package console

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"rsc.io/qr"
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

var unclaimed = State{
	Name: "capsule-a3f2", Address: "10.0.2.15:50000", Claim: "unclaimed", Code: "01234-56789-ABCDE-FGHJK",
	Fingerprint: strings.Repeat("3f2a:91c0:", 7) + "3f2a:91c0", Version: "1.2.3", Slot: "slot_a",
	Network: "no answer from a DHCP server for 15 minutes; it is asked again and again",
}

// place draws what a terminal of the least size would show, without colours.
func place(t *testing.T, text string) []string {
	t.Helper()
	grid := make([][]rune, screenRows+1)
	for i := range grid {
		grid[i] = []rune(strings.Repeat(" ", screenColumns))
	}
	row, column := 0, 0
	for len(text) > 0 {
		if escape := regexp.MustCompile(`^\x1b\[([0-9;?]*)([A-Za-z])`).FindStringSubmatch(text); escape != nil {
			if escape[2] == "H" && escape[1] == "" {
				row, column = 0, 0
			} else if escape[2] == "H" {
				if _, err := fmt.Sscanf(escape[1], "%d;%d", &row, &column); err != nil {
					t.Fatal(err)
				}
				row, column = row-1, column-1
			}
			text = text[len(escape[0]):]
			continue
		}
		r, size := utf8.DecodeRuneInString(text)
		text = text[size:]
		switch r {
		case '\r':
			column = 0
		case '\n':
			row++
		default:
			if row > screenRows || column >= screenColumns {
				t.Fatalf("%q stands outside of the screen, in row %d, column %d", r, row, column)
			}
			grid[row][column] = r
			column++
		}
	}
	var lines []string
	for _, line := range grid {
		lines = append(lines, strings.TrimRight(string(line), " "))
	}
	return lines
}

// The code to claim with can be read by a camera where it stands.
func TestScreenOfAnUnclaimedCapsule(t *testing.T) {
	lines := place(t, picture(unclaimed, Status{}, true))
	code, err := qr.Encode(unclaimed.Code, qr.L)
	if err != nil {
		t.Fatal(err)
	}
	for y := range code.Size {
		for x := range code.Size {
			row, column := []rune(lines[1+(y+qrQuiet)/2]), qrColumn-1+x+qrQuiet
			cell := ' '
			if column < len(row) {
				cell = row[column]
			}
			dark := cell == '█' || (cell == '▀' && (y+qrQuiet)%2 == 0) || (cell == '▄' && (y+qrQuiet)%2 == 1)
			if dark != code.Black(x, y) {
				t.Fatalf("module %d, %d is drawn as %q", x, y, cell)
			}
		}
	}
}

func TestClaimOnSerialLines(t *testing.T) {
	shut := unclaimed
	shut.Code, shut.Unclaimable = "", "the time to claim it is over"
	for _, c := range []struct {
		before, after State
		want          string
	}{
		{State{Network: unclaimed.Network}, unclaimed, "capsule claim: code=01234-56789-ABCDE-FGHJK name=capsule-a3f2 key=" + unclaimed.Fingerprint + "\r\n"},
		{unclaimed, unclaimed, ""},
		{unclaimed, shut, "capsule claim: the time to claim it is over\r\n"},
	} {
		if diff := cmp.Diff(c.want, changes(c.before, c.after, 0)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestIsScreen(t *testing.T) {
	for name, want := range map[string]bool{"tty0": true, "tty1": true, "ttyS0": false, "ttyAMA0": false, "hvc0": false, "tty": false} {
		if isScreen(name) != want {
			t.Error(name)
		}
	}
}
