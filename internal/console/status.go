package console

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// Status is how the machine does, beside its State.
type Status struct {
	Up        time.Duration // since the kernel's start; told in minutes
	Problems  []Problem     // the worst first
	Fills     []Fill
	Addresses []string // of the API, beside the State's
	Workloads []Workload
	Events    []string // the newest last
}

// Problem is one thing that is degraded. What the State tells is none.
type Problem struct {
	ID         string // stays the same while the sentence changes
	Critical   bool
	What, Next string
	Loud       bool // serial lines tell it
}

// Fill is something that may become full.
type Fill struct {
	Name       string
	Used, Size int64 // bytes
}

// Workload is one that is declared.
type Workload struct {
	Name, State string
	Message     string
	Bad         bool
}

// Lines about problems that come and go are told for ever, but not so often that a log
// of the line tells of nothing else.
const (
	newsBurst = 20
	newsEvery = 5 * time.Minute
)

// news is what serial lines were told of problems.
type news struct {
	said map[string]bool
	left *rate.Limiter
}

// lines tells what is newly wrong, and what is no more.
func (n *news) lines(problems []Problem, now time.Time) string {
	if n.left == nil {
		n.left, n.said = rate.NewLimiter(rate.Every(newsEvery), newsBurst), map[string]bool{}
	}
	var b strings.Builder
	is := map[string]bool{}
	for _, p := range problems {
		is[p.ID] = true
		if p.Loud && !n.said[p.ID] && n.left.AllowN(now, 1) {
			n.said[p.ID] = true
			fmt.Fprintf(&b, "capsule problem: %s: %s; %s\r\n", plain(p.ID), plain(p.What), plain(p.Next))
		}
	}
	for id := range n.said {
		if !is[id] {
			delete(n.said, id)
			fmt.Fprintf(&b, "capsule problem: %s: over\r\n", plain(id))
		}
	}
	return b.String()
}
