package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func newLabCommand(*app) *cobra.Command {
	return &cobra.Command{
		Use: "lab", Short: "Run capsules in QEMU (on Linux and macOS only)",
		Args: cobra.ArbitraryArgs,
		RunE: func(*cobra.Command, []string) error {
			return &failure{exitFailed, errors.New("lab machines run on Linux and macOS only"), "in WSL this program's Linux build can run them"}
		},
	}
}
