package dm

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Watch calls look now and after every event of any device, until ctx ends or
// look fails. An event that comes while look runs is not lost.
func Watch(ctx context.Context, look func(c *Control) error) error {
	c, err := Open()
	if err != nil {
		return err
	}
	defer c.Close()
	ended, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ended.Close()
	defer end.Close()
	defer context.AfterFunc(ctx, func() { end.Close() })()
	for {
		// Armed before looking: what happens from here on ends the wait.
		if _, err := c.ask(cmdArmPoll, "", 0); err != nil {
			return fmt.Errorf("wait for events of device mapper: %w", err)
		}
		if err := look(c); err != nil {
			return err
		}
		if err := c.wait(ended); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (c *Control) wait(ended *os.File) error {
	fds := []unix.PollFd{
		{Fd: int32(c.file.Fd()), Events: unix.POLLIN},
		{Fd: int32(ended.Fd()), Events: unix.POLLIN},
	}
	for {
		if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
