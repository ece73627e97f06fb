package drivertest

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"capsule/internal/logs"
)

func (s *suite) logs(t *testing.T) {
	t.Run("IO-07 bytes", s.logBytes)
	t.Run("streams and marks", s.logStreams)
	t.Run("IO-10 capped", s.logCap)
}

// Long lines come out of the log as they went in.
func (s *suite) logBytes(t *testing.T) {
	in := s.instance("bytes", "65537", "a", "then", "print", "then", "bytes", "1048576", "b", "then", "print", "then",
		"bytes", "9000000", "c", "then", "bytes", "3", "e")
	_, o := s.result(t, in)
	if o.ExitCode != 0 {
		t.Fatalf("%+v", o)
	}
	got := output(t, in)
	want := strings.Repeat("a", 65537) + "\n" + strings.Repeat("b", 1<<20) + "\n" + strings.Repeat("c", 9_000_000) + "eee"
	if got != want {
		t.Errorf("%d bytes of sum %x, want %d of %x", len(got), sha256.Sum256([]byte(got)), len(want), sha256.Sum256([]byte(want)))
	}
}

func (s *suite) logStreams(t *testing.T) {
	in := s.instance("print", "out", "then", "printerr", "err", "then", "exit", "4")
	s.result(t, in)
	if err := s.driver.Start(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	s.ended(t, in.ID)
	count := map[string]int{}
	err := logs.Follow(t.Context(), in.LogDir, logs.Options{Tail: -1}, func(r logs.Record) error {
		count[fmt.Sprintf("%d %s", r.Stream, r.Data)]++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"1 out\n", "2 err\n", "3 started generation 1\n", "3 ended with code 4\n"} {
		if count[line] != 2 {
			t.Errorf("%q stands %d times in %v", line, count[line], count)
		}
	}
}

// The newest is kept of more than fits.
func (s *suite) logCap(t *testing.T) {
	const many = 200_000
	in := s.instance("lines", fmt.Sprint(many), strings.Repeat("w", 100))
	if _, o := s.result(t, in); o.ExitCode != 0 {
		t.Fatalf("%+v", o)
	}
	got := output(t, in)
	limit := int(logs.DefaultLimits.FileBytes) * logs.DefaultLimits.Files
	if len(got) > limit || !strings.HasSuffix(got, fmt.Sprintf(" %d\n", many-1)) {
		t.Errorf("%d bytes of at most %d, the end is %q", len(got), limit, got[max(0, len(got)-40):])
	}
}
