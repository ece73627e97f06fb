package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"capsule/internal/support"
)

// supportEntries are what the machine adds to an archive for support.
func (d *daemon) supportEntries() []support.Entry {
	return append(support.Machine(), support.Entry{Name: "nftables.txt", Text: func(_ context.Context, w io.Writer) error {
		n := d.network.Load()
		if n == nil {
			return errNoNetwork
		}
		text, err := n.Rules()
		_, failed := io.WriteString(w, text)
		return errors.Join(failed, err)
	}})
}

// workloadLink is the link of a workload, once there is a network.
func (d *daemon) workloadLink(name string) (string, error) {
	n := d.network.Load()
	if n == nil {
		return "", fmt.Errorf("%w; try again: %w", errNoNetwork, errdefs.ErrUnavailable)
	}
	return n.Link(name)
}
