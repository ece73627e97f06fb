package server

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// place takes one of the few places for what takes long; done gives it back.
func place(places chan struct{}, what string) (done func(), err error) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	default:
		return nil, fmt.Errorf("%s is under way; try again when it has ended: %w", what, errdefs.ErrUnavailable)
	}
}
