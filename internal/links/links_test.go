package links

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestWhole(t *testing.T) {
	other := errors.New("other")
	for name, tc := range map[string]struct {
		interrupted int // how often
		err, want   error
		tries       int
	}{
		"at once":         {0, nil, nil, 1},
		"the second time": {1, nil, nil, 2},
		"never":           {attempts, nil, netlink.ErrDumpInterrupted, attempts},
		"another error":   {1, other, other, 2},
	} {
		t.Run(name, func(t *testing.T) {
			tries := 0
			all, err := whole(func() ([]int, error) {
				if tries++; tries <= tc.interrupted {
					return []int{1}, netlink.ErrDumpInterrupted
				}
				return []int{1, 2}, tc.err
			})
			if !errors.Is(err, tc.want) || tries != tc.tries || len(all) == 0 {
				t.Errorf("%v, %v after %d tries", all, err, tries)
			}
		})
	}
}
