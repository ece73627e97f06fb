// Package clock keeps the machine's time: never before a floor that is known to
// have passed, then right by NTP as soon as a server answers. Nothing waits for it.
package clock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/beevik/ntp"
	"golang.org/x/sys/unix"

	"capsule/internal/durable"
	"capsule/internal/version"
)

const (
	// SavedFile keeps the last known time across a power cut on machines without
	// a battery.
	SavedFile = "/perm/clock"

	stepAbove   = 500 * time.Millisecond // a larger error is stepped, a smaller one slewed
	queryMax    = 5 * time.Second
	pollMin     = 64 * time.Second
	pollMax     = 34 * time.Minute
	retryMin    = 2 * time.Second
	retryMax    = 64 * time.Second
	saveEvery   = 10 * time.Minute
	aheadMax    = 20 * 365 * 24 * time.Hour // a time further after the build isn't believed, wherever it's from
	distanceMax = 1500 * time.Millisecond   // a server whose answer is this uncertain isn't used
)

// DefaultServers are asked when neither the operator nor DHCP names any.
var DefaultServers = []string{"0.debian.pool.ntp.org", "1.debian.pool.ntp.org", "2.debian.pool.ntp.org"}

// SetFloor moves the clock forward when it's before the build time or the time
// last saved, and back to there when it's absurdly late: firmware reads the year
// 70 of a dead RTC as 2070, when every certificate has run out. It reports whether
// it did.
func SetFloor(saved string) (bool, error) {
	build := version.BuildTime()
	now, least := time.Now(), floor(build, readSaved(saved))
	if !now.Before(least) && !absurd(build, now) {
		return false, nil
	}
	if err := set(least); err != nil {
		return false, err
	}
	return true, nil
}

// absurd times are further after the build than this version can be in use. A
// build without a time tells nothing.
func absurd(build, t time.Time) bool { return build.Unix() > 0 && t.After(build.Add(aheadMax)) }

// floor is the later one of both, unless the saved one is absurd.
func floor(build, saved time.Time) time.Time {
	if saved.After(build) && !absurd(build, saved) {
		return saved
	}
	return build
}

func readSaved(file string) time.Time {
	b, err := os.ReadFile(file)
	if err != nil {
		return time.Time{}
	}
	s, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(s, 0)
}

// Save writes the time to the file for SetFloor of the next boot.
func Save(file string) error {
	if err := durable.WriteFile(file, fmt.Appendln(nil, time.Now().Unix()), 0o644); err != nil {
		return fmt.Errorf("save time: %w", err)
	}
	return nil
}

func set(t time.Time) error {
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

// A State is what's known about the clock.
type State struct {
	Synced bool
	Server string
	Offset time.Duration // at the last answer
	At     time.Time     // of the last answer
	Err    string        // why there's no answer now
}

var current struct {
	sync.Mutex
	State
}

// Now is the state of the process's Run.
func Now() State {
	current.Lock()
	defer current.Unlock()
	return current.State
}

// Options of Run.
type Options struct {
	Servers func() []string // asked before each round; empty means DefaultServers
	OnSync  func()          // called once, after the first answer has set the clock
	Saved   string          // SavedFile when empty
	// Again has the servers asked before it is time; nil never does.
	Again <-chan struct{}
	// OnStep is called when the clock was set by so much, and not slewed.
	OnStep func(offset time.Duration, server string)

	adjust func(time.Duration) error // the machine's clock when nil
}

// Run keeps the clock until the context ends. It steps once, later errors are
// slewed unless they are large.
func Run(ctx context.Context, o Options) error {
	if o.Saved == "" {
		o.Saved = SavedFile
	}
	if o.adjust == nil {
		o.adjust = adjust
	}
	poll, retry := pollMin, retryMin
	lastSave := time.Now()
	for {
		server, answer, err := query(ctx, servers(o.Servers))
		if err == nil {
			err = o.adjust(answer.ClockOffset)
		}
		if err == nil && answer.ClockOffset.Abs() > stepAbove && o.OnStep != nil {
			o.OnStep(answer.ClockOffset, server)
		}
		first := note(server, answer, err)
		wait := poll
		if err != nil {
			wait, retry = retry, min(2*retry, retryMax)
		} else {
			retry, poll = retryMin, min(2*poll, pollMax)
		}
		if first || time.Since(lastSave) >= saveEvery {
			_ = Save(o.Saved) // the next round tries again
			lastSave = time.Now()
		}
		if first && o.OnSync != nil {
			o.OnSync()
		}
		if !sleep(ctx, o.Again, jitter(min(wait, saveEvery))) {
			return ctx.Err()
		}
	}
}

func servers(named func() []string) []string {
	if named != nil {
		if list := named(); len(list) > 0 {
			return list
		}
	}
	return DefaultServers
}

// query asks the servers one after the other and takes the first sane answer.
func query(ctx context.Context, servers []string) (string, *ntp.Response, error) {
	var errs []error
	for _, server := range servers {
		if ctx.Err() != nil {
			return "", nil, ctx.Err()
		}
		r, err := ntp.QueryWithOptions(server, ntp.QueryOptions{Timeout: queryMax})
		if err == nil {
			err = check(r, version.BuildTime())
		}
		if err == nil {
			return server, r, nil
		}
		errs = append(errs, fmt.Errorf("ask time server %q: %w", server, err))
	}
	return "", nil, errors.Join(errs...)
}

// check refuses answers that can't be right: uncertain ones, and those that would
// set the clock before this program was built or absurdly long after. Nobody has to
// prove to be a time server, and the offset needn't fit the time in the answer.
func check(r *ntp.Response, build time.Time) error {
	if err := r.Validate(); err != nil {
		return err
	}
	if r.RootDistance > distanceMax {
		return fmt.Errorf("its time is uncertain by %v", r.RootDistance)
	}
	at := time.Now().Add(r.ClockOffset)
	if at.Before(build) {
		return fmt.Errorf("its time %v is before this version was built", at.UTC().Format(time.RFC3339))
	}
	if absurd(build, at) {
		return fmt.Errorf("its time %v is more than %d years after this version was built", at.UTC().Format(time.RFC3339), aheadMax/(365*24*time.Hour))
	}
	return nil
}

// adjust corrects the clock by offset: at once when it's large, else by slewing,
// so that time never runs backwards in normal work.
func adjust(offset time.Duration) error {
	if offset.Abs() > stepAbove {
		return set(time.Now().Add(offset))
	}
	t := unix.Timex{Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: offset.Microseconds()}
	if _, err := unix.Adjtimex(&t); err != nil {
		return fmt.Errorf("slew clock: %w", err)
	}
	clear := unix.Timex{Modes: unix.ADJ_STATUS | unix.ADJ_MAXERROR} // tells the kernel that the clock is in sync, so that it updates the RTC
	_, _ = unix.Adjtimex(&clear)
	return nil
}

// note records a round and reports whether it is the first that worked.
func note(server string, r *ntp.Response, err error) (first bool) {
	current.Lock()
	defer current.Unlock()
	if err != nil {
		current.Err = err.Error()
		return false
	}
	first = !current.Synced
	current.State = State{Synced: true, Server: server, Offset: r.ClockOffset, At: time.Now()}
	return first
}

func jitter(d time.Duration) time.Duration { return d + rand.N(d/8+1) }

// sleep ends early when it is woken; false when ctx ended.
func sleep(ctx context.Context, woken <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-woken:
	}
	return true
}
