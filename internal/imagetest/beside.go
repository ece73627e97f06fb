package imagetest

import "time"

// Beside is how far a clock that was asked between two moments is off, whatever
// time the asking took.
func Beside(before, told, after time.Time) time.Duration {
	return max(before.Sub(told), told.Sub(after), 0)
}
