package lvm

import (
	"context"
	"fmt"
)

// Rest waits for the command that runs and lets no other begin: this process is
// about to end, and what it started with it.
func Rest(ctx context.Context) error {
	if _, err := takeTurn(ctx); err != nil {
		return fmt.Errorf("an lvm command still runs: %w", err)
	}
	return nil
}
