package guest

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// clockTolerance is how far the clock may be off: a step is worse than that.
const clockTolerance = 500 * time.Millisecond

// setClock steps the clock when it is off, and gives the time before that.
func setClock(right *timestamppb.Timestamp) (was time.Time, err error) {
	was = time.Now()
	if right == nil {
		return was, nil
	}
	off := right.AsTime().Sub(was)
	if off.Abs() <= clockTolerance {
		return was, nil
	}
	now := unix.NsecToTimespec(right.AsTime().UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		return was, fmt.Errorf("set the clock: %w", err)
	}
	return was, nil
}
