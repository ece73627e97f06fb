package guest

import (
	"fmt"
	"os"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/terminal"
)

// terminal makes one in the payload's /dev/pts, which is a mount that no payload
// can replace.
func (x *execution) terminal() (theirs [3]*os.File, err error) {
	size := x.start.GetSize()
	console, theirs, err := terminal.Open(fmt.Sprintf("/proc/%d/root/dev/pts/ptmx", x.payload.first.Pid), size.GetRows(), size.GetColumns())
	if err != nil {
		return theirs, err
	}
	x.console, x.stdin = console, console.File
	x.out.add(streamWriter{x, false}, console.File)
	return theirs, nil
}

func (x *execution) resize(size *capsulev1.TerminalSize) {
	if x.console != nil {
		x.console.Resize(size.GetRows(), size.GetColumns())
	}
}
