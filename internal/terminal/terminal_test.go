package terminal

import (
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTerminal(t *testing.T) {
	ours, theirs, err := Open("/dev/ptmx", 24, 80)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	size := func() [2]uint16 {
		t.Helper()
		s, err := unix.IoctlGetWinsize(int(theirs[0].Fd()), unix.TIOCGWINSZ)
		if err != nil {
			t.Fatal(err)
		}
		return [2]uint16{s.Row, s.Col}
	}
	if got := size(); got != [2]uint16{24, 80} {
		t.Errorf("it begins with %v", got)
	}
	ours.Resize(50, 132)
	if got := size(); got != [2]uint16{50, 132} {
		t.Errorf("then it has %v", got)
	}
	if _, err := io.WriteString(theirs[1], "hi\n"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(ours, got); err != nil || string(got) != "hi\r\n" {
		t.Errorf("it shows %q, %v", got, err)
	}
	for _, f := range theirs {
		f.Close()
	}
	if _, _, err := Open("/dev/null", 0, 0); err == nil {
		t.Error("a file that is no terminal is one")
	}
}
