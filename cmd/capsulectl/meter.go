package main

import (
	"fmt"
	"sync"
	"time"
)

// meterStep is between lines of a meter where there is no terminal, per cent.
const meterStep = 10

// meter shows long work in one line: redrawn on a terminal, and elsewhere a line
// for each tenth. It may be used by several goroutines.
type meter struct {
	mu    sync.Mutex
	line  statusLine
	step  string
	begun time.Time
	from  int64 // that the step began with: what was there already has no speed
	told  int64 // tenths
}

// set shows that done of total bytes of a step are through, and what more there is
// to say.
func (m *meter) set(step string, done, total int64, more string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if step != m.step || done < m.from {
		m.step, m.begun, m.from, m.told = step, time.Now(), done, -1
	}
	text := meterText(step, done, total, pace(done-m.from, total-m.from, time.Since(m.begun)), more)
	tenth := share100(done, total) / meterStep
	if !m.line.ui.errMoves && tenth <= m.told {
		return
	}
	m.told = tenth
	m.line.set(text)
}

func meterText(step string, done, total int64, speed, more string) string {
	text := fmt.Sprintf("%s: %d %%, %s", step, share100(done, total), amount(done, total))
	for _, part := range []string{speed, more} {
		if part != "" {
			text += ", " + part
		}
	}
	return text
}

// share100 is how much of the total is through, per cent: all of nothing is all.
func share100(done, total int64) int64 {
	if total <= 0 || done >= total {
		return 100
	}
	return max(0, int64(float64(done)/float64(total)*100))
}

// note tells something between, without leaving half a line.
func (m *meter) note(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.line.end()
	m.line.ui.note(format, args...)
	m.told = -1
}

func (m *meter) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.line.end()
}
