package manifest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Error is one fault of a manifest and its place, both from 1.
type Error struct {
	File         string
	Line, Column int
	Message      string
}

func (e Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// Errors are all faults found in a manifest, one per line, in order. Its class
// is InvalidArgument.
type Errors struct {
	All []Error
	// More faults were found than are kept.
	More bool
}

func (e *Errors) Error() string {
	lines := make([]string, 0, len(e.All)+1)
	for _, one := range e.All {
		lines = append(lines, one.Error())
	}
	if e.More {
		lines = append(lines, "more errors follow; these come first")
	}
	return strings.Join(lines, "\n")
}

// Is makes errdefs.IsInvalidArgument true.
func (e *Errors) Is(target error) bool { return target == errdefs.ErrInvalidArgument }

func (e *Errors) add(one Error) {
	if len(e.All) == maxErrors {
		e.More = true
		return
	}
	if !slices.Contains(e.All, one) {
		e.All = append(e.All, one)
	}
}

func (e *Errors) sort() {
	slices.SortStableFunc(e.All, func(a, b Error) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
}

// classed is a sentence with the class InvalidArgument, and without its words.
type classed string

func (c classed) Error() string        { return string(c) }
func (c classed) Is(target error) bool { return target == errdefs.ErrInvalidArgument }

func invalid(format string, args ...any) error { return classed(fmt.Sprintf(format, args...)) }
