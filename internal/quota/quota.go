// Package quota limits how often each of many may do something, so that none of
// them takes what is there for the others. Whom it tells apart is its user's to
// say; it never waits.
package quota

import (
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// keysMax are told apart at once.
const keysMax = 1024

// Quota gives each key so many at once, then one after each interval.
type Quota struct {
	every time.Duration
	burst int

	mu sync.Mutex
	of map[string]*rate.Limiter
}

// New makes one that nobody has taken of yet.
func New(every time.Duration, burst int) *Quota {
	return &Quota{every: every, burst: burst, of: map[string]*rate.Limiter{}}
}

// Allow takes one of what a key has left. While too many others have taken some,
// a new key has none.
func (q *Quota) Allow(key string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.of[key]
	if l == nil {
		if len(q.of) >= keysMax {
			q.forget()
		}
		if len(q.of) >= keysMax {
			return false
		}
		l = rate.NewLimiter(rate.Every(q.every), q.burst)
		q.of[key] = l
	}
	return l.Allow()
}

// forget drops the keys that have all of theirs again. q.mu is held.
func (q *Quota) forget() {
	maps.DeleteFunc(q.of, func(_ string, l *rate.Limiter) bool { return l.Tokens() >= float64(q.burst) })
}
