package pid1

import (
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"capsule/internal/watchdog"
)

// A stage is where serve plays its part, in virtual time, for a trial that's asked
// as the main loop asks it. The play is over with the verdict.
type stage struct {
	events chan func(now time.Duration)
	killed chan struct{} // one for each time that it was to be ended
	over   chan struct{}
	trial  trial
	kills  int
}

func (s *stage) tell(what func(now time.Duration)) {
	select {
	case s.events <- what:
	case <-s.over:
		runtime.Goexit()
	}
}
func (s *stage) say(text string)   { s.tell(func(now time.Duration) { s.trial.hear(now, text) }) }
func (s *stage) start()            { s.tell(s.trial.serveStarts) }
func (s *stage) end()              { s.tell(func(now time.Duration) { s.trial.serveEnded(now, "exit status 1") }) }
func (s *stage) found(is standing) { s.tell(func(time.Duration) { s.trial.standing = is }) }

func (s *stage) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.over:
		runtime.Goexit()
	}
}

// dies waits to be killed.
func (s *stage) dies() {
	select {
	case <-s.killed:
		s.end()
	case <-s.over:
		runtime.Goexit()
	}
}

// alive says that the API answers for as long as d.
func (s *stage) alive(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); s.sleep(10 * time.Second) {
		s.say("WATCHDOG=1")
	}
}

// crash is a run that ends after d.
func (s *stage) crash(d time.Duration) {
	s.start()
	s.sleep(d)
	s.end()
}

// play gives the verdict and when it came; "" when there's none within a day.
func (s *stage) play(serve func(*stage)) (why string, at time.Duration) {
	s.events, s.killed, s.over = make(chan func(time.Duration)), make(chan struct{}, 1000), make(chan struct{})
	var actors sync.WaitGroup
	actors.Go(func() { serve(s) })
	defer actors.Wait()
	defer close(s.over)
	begin := time.Now()
	tick := time.NewTicker(watchdog.Every)
	defer tick.Stop()
	for {
		now := time.Since(begin)
		if s.trial.hung(now) {
			s.kills++
			s.killed <- struct{}{}
		}
		if why := s.trial.givenUp(now); why != "" || now > 24*time.Hour {
			return why, now
		}
		select {
		case fn := <-s.events:
			fn(time.Since(begin))
		case <-tick.C:
		}
	}
}

func TestTrial(t *testing.T) {
	ready := func(s *stage) { s.start(); s.say("READY=1") }
	for name, tc := range map[string]struct {
		is    standing
		serve func(*stage)
		why   string // a part of it
		at    time.Duration
		kills int
	}{
		"works and is confirmed": {tentative, func(s *stage) {
			ready(s)
			s.say("CAPSULE_WINDOW=600")
			s.alive(5 * time.Minute)
			s.say("CAPSULE_CONFIRMED=1")
			s.alive(25 * time.Hour)
		}, "", 0, 0},
		"is not confirmed": {tentative, func(s *stage) {
			ready(s)
			s.alive(time.Hour)
		}, "not confirmed within 10m0s, and", 10*time.Minute + daemonFirst, 0},
		"is not confirmed in its own time": {tentative, func(s *stage) {
			ready(s)
			s.say("CAPSULE_WINDOW=1800.5")
			s.alive(time.Hour)
		}, "not confirmed within 30m0.5s", 30*time.Minute + time.Second/2 + daemonFirst, 0},
		"names no sensible time": {tentative, func(s *stage) {
			ready(s)
			for _, text := range []string{"x", "-1", "0", "NaN", "1e30", ""} {
				s.say("CAPSULE_WINDOW=" + text)
			}
			s.alive(time.Hour)
		}, "not confirmed within 10m0s", 10*time.Minute + daemonFirst, 0},
		"a check of the disk took twenty minutes": {tentative, func(s *stage) {
			s.sleep(20 * time.Minute)
			ready(s)
			s.say("CAPSULE_WINDOW=600")
			s.alive(time.Hour)
		}, "not confirmed within 10m0s", 30*time.Minute + daemonFirst, 0},
		"is never ready": {tentative, func(s *stage) {
			s.start()
			s.alive(time.Hour)
		}, "not ready 3m0s after", 3 * time.Minute, 0},
		"ends before it's ready": {tentative, func(s *stage) {
			for range 5 {
				s.crash(20 * time.Second)
			}
		}, `5 times before it was ready, at last with "exit status 1"`, 100 * time.Second, 0},
		"ends four times, then works": {tentative, func(s *stage) {
			for range 4 {
				s.crash(time.Second)
			}
			ready(s)
			s.alive(time.Hour)
		}, "not confirmed within", 10*time.Minute + daemonFirst, 0},
		"ends again and again": {tentative, func(s *stage) {
			for range 5 {
				ready(s)
				s.crash(10 * time.Second)
			}
		}, "5 times within 2m0s", 50 * time.Second, 0},
		"ends once a minute": {tentative, func(s *stage) {
			for {
				ready(s)
				s.crash(time.Minute - time.Second)
				s.sleep(time.Second)
			}
		}, "not confirmed within", 10*time.Minute + daemonFirst, 0},
		"hangs after each start": {tentative, func(s *stage) {
			for {
				ready(s)
				s.alive(20 * time.Second)
				s.dies()
			}
		}, "3 times in a row", 3 * 70 * time.Second, 3},
		"hangs and can't be killed": {tentative, func(s *stage) {
			ready(s)
		}, "3 times in a row", 3 * time.Minute, 3},
		"hangs after a start that wasn't the first": {tentative, func(s *stage) {
			ready(s)
			s.say("CAPSULE_WINDOW=36000")
			for {
				s.start()
				s.dies()
			}
		}, "3 times in a row", 9 * time.Minute, 3},
		"hangs now and then": {tentative, func(s *stage) {
			s.say("CAPSULE_WINDOW=36000")
			for {
				ready(s)
				s.alive(20 * time.Minute)
				s.dies()
			}
		}, "not confirmed within 10h0m0s", 10*time.Hour + daemonFirst, 28},
		"hung once": {settled, func(s *stage) {
			ready(s)
			s.dies()
			s.crash(time.Second)
			ready(s)
			s.alive(25 * time.Hour)
		}, "", 0, 1},
		"good, and breaks": {settled, func(s *stage) {
			for {
				ready(s)
				s.crash(time.Second)
			}
		}, "", 0, 0},
		"good, and takes its time to answer": {settled, func(s *stage) {
			s.start()
			s.sleep(time.Hour)
			s.say("READY=1")
			s.alive(25 * time.Hour)
		}, "", 0, 0},
		"broke before anybody knew that it's tentative": {unknown, func(s *stage) {
			for range 6 {
				s.crash(time.Second)
			}
			s.sleep(time.Minute)
			s.found(tentative)
		}, "5 times before", 66 * time.Second, 0},
		"has a boot partition that nobody can read": {doubtful, func(s *stage) {
			ready(s)
			s.alive(time.Hour)
		}, "could not be read for 10m0s", 10 * time.Minute, 0},
		"has a boot partition that was found late": {doubtful, func(s *stage) {
			ready(s)
			s.alive(5 * time.Minute)
			s.found(settled)
			s.alive(25 * time.Hour)
		}, "", 0, 0},
		"found its state unreadable": {tentative, func(s *stage) {
			s.start()
			s.sleep(4 * time.Second)
			s.say("CAPSULE_RECOVERY=state.db is damaged")
		}, "recovery mode: state.db is damaged", 4 * time.Second, 0},
		"stood still for an hour": {settled, func(s *stage) {
			ready(s)
			s.tell(func(time.Duration) { time.Sleep(time.Hour) })
			s.alive(25 * time.Hour)
		}, "", 0, 0},
		"says what nobody knows": {settled, func(s *stage) {
			ready(s)
			s.say("STATUS=x")
			s.say("")
			s.alive(25 * time.Hour)
		}, "", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &stage{trial: trial{standing: tc.is}}
				why, at := s.play(tc.serve)
				if !strings.Contains(why, tc.why) || (why == "") != (tc.why == "") {
					t.Errorf("given up for %q, want %q", why, tc.why)
				}
				if late := at - tc.at; tc.why != "" && (late < 0 || late > watchdog.Every) {
					t.Errorf("given up after %v, want %v", at, tc.at)
				}
				if s.kills != tc.kills {
					t.Errorf("ended %d times for its silence, want %d", s.kills, tc.kills)
				}
			})
		})
	}
}
