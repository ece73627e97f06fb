package uplink

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func grant(address string, expiry time.Duration) *Lease {
	return &Lease{Address: netip.MustParsePrefix(address), Server: netip.MustParseAddr("192.0.2.1"), Acquired: time.Now(),
		Renew: expiry / 2, Rebind: expiry / 8 * 7, Expiry: expiry}
}

func TestNext(t *testing.T) {
	start := time.Now()
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	lease := &Lease{Acquired: start, Renew: 50 * time.Second, Rebind: 80 * time.Second, Expiry: 100 * time.Second}
	for _, test := range []struct {
		name string
		m    machine
		what ask
		at   time.Time
	}{
		{"nothing", machine{}, discover, time.Time{}},
		{"nothing, later", machine{retryAt: at(3)}, discover, at(3)},
		{"bound", machine{lease: lease}, renew, at(50)},
		{"renewing", machine{lease: lease, fails: 1, retryAt: at(65)}, renew, at(65)},
		{"rebinding", machine{lease: lease, fails: 2, retryAt: at(80)}, rebind, at(80)},
		{"late", machine{lease: lease, fails: 3, retryAt: at(100)}, 0, at(100)},
		{"past", machine{lease: lease, fails: 3, retryAt: at(120)}, 0, at(100)},
		{"link came up", machine{lease: lease, reboot: true, retryAt: at(10)}, reboot, at(10)},
		{"nobody confirms", machine{lease: lease, reboot: true, fails: 1, retryAt: at(13)}, discover, at(13)},
		{"link came up late", machine{lease: lease, reboot: true, retryAt: at(101)}, 0, at(100)},
	} {
		t.Run(test.name, func(t *testing.T) {
			if what, at := test.m.next(); what != test.what || !at.Equal(test.at) {
				t.Errorf("%v at %s, want %v at %s", what, at.Sub(start), test.what, test.at.Sub(start))
			}
		})
	}
}

// wire is the world of a client in a bubble: it answers as told and notes all.
type wire struct {
	start   time.Time
	mu      sync.Mutex
	log     []string
	answer  func(what ask) (*Lease, error) // nil answers never
	carrier chan carrier
	has     string
}

// say sets what is answered from now on.
func (w *wire) say(answer func(what ask) (*Lease, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = answer
}

func (w *wire) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, fmt.Sprintf("%ds ", int(time.Since(w.start).Round(time.Second).Seconds()))+fmt.Sprintf(format, args...))
}

func (w *wire) client(up bool) *client {
	w.start, w.carrier = time.Now(), make(chan carrier, 1)
	return &client{
		link: "up0", now: carrier{up: up}, carrier: w.carrier,
		ask: func(ctx context.Context, what ask, _ *Lease, _ time.Duration) (*Lease, error) {
			w.note("%s", what)
			w.mu.Lock()
			answer := w.answer
			w.mu.Unlock()
			if answer == nil {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return answer(what)
		},
		apply: func(l *Lease) error {
			if l == nil {
				w.has = ""
			} else {
				w.has = l.Address.String()
			}
			w.note("has %q", w.has)
			return nil
		},
		report: func(*Lease, string) {},
	}
}

func TestClient(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(w *wire)
		want string
	}{
		{"nobody for ever, then a server", func(w *wire) {
			time.Sleep(50 * time.Second)
			w.say(func(ask) (*Lease, error) { return grant("192.0.2.5/24", time.Hour), nil })
			time.Sleep(15 * time.Second)
		}, `0s discover|15s discover|23s discover|31s discover|39s discover|47s discover|55s discover|55s has "192.0.2.5/24"`},
		{"renewed at T1", func(w *wire) {
			w.say(func(ask) (*Lease, error) { return grant("192.0.2.5/24", 2*time.Minute), nil })
			time.Sleep(130 * time.Second)
		}, `0s discover|0s has "192.0.2.5/24"|60s renew|60s has "192.0.2.5/24"|120s renew|120s has "192.0.2.5/24"`},
		{"server gone past expiry", func(w *wire) {
			w.say(func(ask) (*Lease, error) { return grant("192.0.2.5/24", 2*time.Minute), nil })
			time.Sleep(time.Second)
			w.say(nil)
			time.Sleep(140 * time.Second)
		}, `0s discover|0s has "192.0.2.5/24"|60s renew|88s renew|105s rebind|120s has ""|120s discover|135s discover`},
		{"another server rebinds", func(w *wire) {
			w.say(func(what ask) (*Lease, error) {
				if what == renew {
					return nil, fmt.Errorf("no route to host")
				}
				return grant("192.0.2.5/24", 2*time.Minute), nil
			})
			time.Sleep(110 * time.Second)
		}, `0s discover|0s has "192.0.2.5/24"|60s renew|83s renew|94s renew|104s renew|105s rebind|105s has "192.0.2.5/24"`},
		{"refused at renewal", func(w *wire) {
			next := "192.0.2.5/24"
			w.say(func(what ask) (*Lease, error) {
				if what == renew {
					next = "192.0.2.6/24"
					return nil, errRefused
				}
				return grant(next, 2*time.Minute), nil
			})
			time.Sleep(70 * time.Second)
		}, `0s discover|0s has "192.0.2.5/24"|60s renew|60s has ""|61s discover|61s has "192.0.2.6/24"`},
		{"refused in a circle", func(w *wire) {
			w.say(func(ask) (*Lease, error) { return nil, errRefused })
			time.Sleep(30 * time.Second)
		}, `0s discover|1s discover|3s discover|7s discover|15s discover|23s discover`},
		{"errors at once do not spin", func(w *wire) {
			w.say(func(ask) (*Lease, error) { return nil, fmt.Errorf("network is down") })
			time.Sleep(30 * time.Second)
		}, `0s discover|1s discover|3s discover|7s discover|15s discover|23s discover`},
		{"cable pulled and plugged", func(w *wire) {
			w.say(func(ask) (*Lease, error) { return grant("192.0.2.5/24", time.Hour), nil })
			time.Sleep(time.Second)
			w.carrier <- carrier{downs: 1}
			time.Sleep(time.Minute)
			w.carrier <- carrier{up: true, downs: 1}
			time.Sleep(time.Second)
		}, `0s discover|0s has "192.0.2.5/24"|61s has "192.0.2.5/24"|61s reboot|61s has "192.0.2.5/24"`},
		{"pulled and plugged before anybody looked", func(w *wire) {
			w.say(func(ask) (*Lease, error) { return grant("192.0.2.5/24", time.Hour), nil })
			time.Sleep(time.Second)
			w.carrier <- carrier{up: true, downs: 1}
			time.Sleep(time.Second)
		}, `0s discover|0s has "192.0.2.5/24"|1s has "192.0.2.5/24"|1s reboot|1s has "192.0.2.5/24"`},
		{"plugged into a silent network", func(w *wire) {
			w.say(func(ask) (*Lease, error) { return grant("192.0.2.5/24", time.Hour), nil })
			time.Sleep(time.Second)
			w.carrier <- carrier{downs: 1}
			time.Sleep(time.Second)
			w.say(nil)
			w.carrier <- carrier{up: true, downs: 1}
			time.Sleep(60 * time.Second)
		}, `0s discover|0s has "192.0.2.5/24"|2s has "192.0.2.5/24"|2s reboot|5s discover|13s discover|21s discover|29s discover|37s discover`},
		{"unplugged past expiry", func(w *wire) {
			w.say(func(ask) (*Lease, error) { return grant("192.0.2.5/24", 2*time.Minute), nil })
			time.Sleep(time.Second)
			w.carrier <- carrier{downs: 1}
			time.Sleep(3 * time.Minute)
			w.carrier <- carrier{up: true, downs: 1}
			time.Sleep(time.Second)
		}, `0s discover|0s has "192.0.2.5/24"|120s has ""|181s discover|181s has "192.0.2.5/24"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &wire{}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				c := w.client(true)
				go func() {
					defer close(done)
					// In a bubble, this ends when the world's first words are said.
					time.Sleep(time.Nanosecond)
					c.run(ctx)
				}()
				test.run(w)
				cancel()
				<-done
				if got := strings.Join(w.log, "|"); got != test.want {
					t.Errorf("\ngot  %s\nwant %s", got, test.want)
				}
			})
		})
	}
}

// The lease is tried to be confirmed, but holds when nobody does.
func TestAdoptSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		c := w.client(true)
		c.lease = grant("192.0.2.5/24", time.Hour)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.run(ctx)
		}()
		time.Sleep(20 * time.Minute)
		cancel()
		<-done
		want := `0s has "192.0.2.5/24"|0s reboot|3s discover|11s discover|19s discover|27s discover|35s discover`
		if got := strings.Join(w.log, "|"); got != want {
			t.Errorf("\ngot  %s\nwant %s", got, want)
		}
	})
}
