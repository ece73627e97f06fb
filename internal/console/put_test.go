package console

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A console that somebody stopped holds nobody up, and goes on when it's let go.
func TestPutToAStoppedTerminal(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIPPED, no pseudo terminals: %v", err)
	}
	defer master.Close()
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	device := fmt.Sprintf("/dev/pts/%d", number)
	slave, err := os.OpenFile(device, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	flow := func(action int) {
		if err := unix.IoctlSetInt(int(slave.Fd()), unix.TCXONC, action); err != nil {
			t.Fatal(err)
		}
	}
	flow(unix.TCOOFF)
	done := make(chan struct{})
	go func() { put(device, strings.Repeat("lost ", 1<<16)); close(done) }()
	select {
	case <-done:
	case <-time.After(writeMax + 20*time.Second):
		flow(unix.TCOON)
		t.Fatal("a stopped terminal blocks")
	}
	flow(unix.TCOON)
	go put(device, "\nagain\n")
	for lines := bufio.NewScanner(master); lines.Scan(); {
		if strings.TrimSpace(lines.Text()) == "again" {
			return
		}
	}
	t.Error("nothing came any more")
}
