package uplink

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// client keeps the lease of one link. Its functions are the world.
type client struct {
	link string
	// ask sends a request and waits for the answer.
	ask func(ctx context.Context, what ask, old *Lease, again time.Duration) (*Lease, error)
	// apply makes the link have what the lease says and nothing else; nil
	// takes the address away.
	apply func(*Lease) error
	// report tells of a change: the lease, or a sentence why there is none.
	report func(l *Lease, message string)
	// carrier tells of the link's partner; the last value counts.
	carrier <-chan carrier

	machine
	now carrier
}

// carrier says whether the other end of a link is there, and how often it was
// lost: a cable may move to another network faster than events are read.
type carrier struct {
	up    bool
	downs int
}

// run works until ctx ends; the address stays.
func (c *client) run(ctx context.Context) {
	c.adopt()
	for ctx.Err() == nil {
		what, at := c.next()
		if !c.wait(ctx, what, at) {
			continue
		}
		if what == 0 {
			c.lose()
			c.expired(time.Now())
			continue
		}
		c.exchange(ctx, what)
	}
}

// adopt starts with the lease that a daemon before this one had.
func (c *client) adopt() {
	c.retryAt = time.Now()
	if c.lease != nil {
		if err := c.apply(c.lease); err != nil {
			c.report(nil, err.Error())
			c.lease = nil
			return
		}
		c.reboot = true
		c.report(c.lease, "")
	}
}

// wait returns true when the time has come, false when something changed
// before. Without carrier only expiry comes.
func (c *client) wait(ctx context.Context, what ask, at time.Time) bool {
	if !c.now.up {
		if c.lease == nil {
			c.report(nil, noCarrier(c.link))
			at = time.Now().Add(forever)
		} else if what != 0 {
			at = c.lease.Acquired.Add(c.lease.Expiry)
		}
	}
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case now := <-c.carrier:
		c.carried(now)
	case <-timer.C:
		// The time of the lease's end, when there was no carrier to ask by.
		if !c.now.up && what != 0 {
			c.lose()
			c.expired(time.Now())
			return false
		}
		return true
	}
	return false
}

// forever is longer than a machine runs.
const forever = 100 * 365 * 24 * time.Hour

func (c *client) carried(now carrier) {
	if now.up && now != c.now {
		c.linkUp(time.Now())
		if c.lease != nil {
			// The kernel drops routes with the link; the lease holds meanwhile.
			if err := c.apply(c.lease); err != nil {
				c.report(nil, err.Error())
			}
		} else {
			c.report(nil, fmt.Sprintf("link %q: asking for an address by DHCP", c.link))
		}
	}
	c.now = now
}

// lose takes the address away when the lease has run out.
func (c *client) lose() {
	message := fmt.Sprintf("link %q: lease of %s ran out, and no DHCP server has renewed it", c.link, c.lease.Address.Addr())
	if err := c.apply(nil); err != nil {
		message = err.Error()
	}
	c.report(nil, message)
}

// exchange asks, and takes what comes: an answer, none, or a change of the link.
func (c *client) exchange(ctx context.Context, what ask) {
	again, total := c.patience(what)
	began := time.Now()
	end := began.Add(total)
	if c.lease != nil && end.After(c.lease.Acquired.Add(c.lease.Expiry)) {
		end = c.lease.Acquired.Add(c.lease.Expiry)
	}
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	type answer struct {
		lease *Lease
		err   error
	}
	answers := make(chan answer, 1)
	old := c.lease
	go func() {
		l, err := c.ask(ctx, what, old, again)
		answers <- answer{l, err}
	}()
	for {
		select {
		case now := <-c.carrier:
			if now == c.now {
				continue
			}
			cancel()
			<-answers
			c.carried(now)
			return
		case a := <-answers:
			if err := context.Cause(ctx); errors.Is(err, context.Canceled) {
				return
			}
			c.answered(what, began, a.lease, a.err)
			return
		}
	}
}

func (c *client) answered(what ask, began time.Time, l *Lease, err error) {
	if err == nil {
		err = c.apply(l)
	}
	switch {
	case err == nil:
		c.acked(l)
		c.report(l, "")
	case errors.Is(err, errRefused):
		message := fmt.Sprintf("link %q: %v", c.link, err)
		if c.lease != nil {
			if err := c.apply(nil); err != nil {
				message = err.Error()
			}
		}
		c.refused(time.Now())
		c.report(nil, message)
	default:
		c.unanswered(began, time.Now())
		if c.lease != nil {
			return
		}
		c.report(nil, c.why(err))
	}
}

// why says in a sentence why a request brought no address.
func (c *client) why(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("link %q: no DHCP server answers (asked %d times)", c.link, c.fails)
	}
	return fmt.Sprintf("link %q: %v", c.link, err)
}
