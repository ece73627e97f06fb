package main

import (
	"runtime"

	"github.com/spf13/cobra"

	"capsule/internal/version"
)

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show this program's version",
		Example: "  capsulectl version",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			facts := map[string]string{"version": version.Version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			return a.ui.show(a.output, view{
				single: true, names: []string{version.Version}, values: []any{facts},
				rows: [][]string{{"version:", version.Version}, {"go:", facts["go"]}, {"platform:", facts["platform"]}},
			})
		},
	}
}
