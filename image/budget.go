package main

import (
	"errors"
	"fmt"
	"os"
)

// Budgets in bytes. A push over a slow link and a slot of 1 GiB are what they guard.
const (
	rootBudget = 110 << 20
	ukiBudget  = 24 << 20
)

// budget is the largest size that a file may have.
type budget struct {
	name string
	path string
	max  int64 // bytes
}

// checkBudgets prints each file's share of its budget and fails for all that broke it.
func checkBudgets(budgets []budget) error {
	var broken error
	for _, b := range budgets {
		info, err := os.Stat(b.path)
		if err != nil {
			return err
		}
		const mib = 1 << 20
		fmt.Printf("  %-22s %6.1f of %d MiB\n", b.name, float64(info.Size())/mib, b.max/mib)
		if info.Size() > b.max {
			broken = errors.Join(broken, fmt.Errorf("%s is %d bytes, over its budget of %d", b.name, info.Size(), b.max))
		}
	}
	return broken
}
