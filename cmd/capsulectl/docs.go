package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

const docsIntro = `# capsulectl

The commands as they describe themselves. This file is written by
` + "`go generate ./cmd/capsulectl`" + `; a test checks that it is current.

`

//go:generate go run . docs ../../docs/cli.md

func newDocsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "docs FILE", Short: "Write docs/cli.md", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return os.WriteFile(args[0], []byte(manual(cmd.Root())), 0o644) //nolint:gosec // a page of the manual
		},
	}
}

// manual is the text of docs/cli.md.
func manual(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString(docsIntro + root.Long + "\n\n" + block("Flags of all commands", root.PersistentFlags().FlagUsages()))
	for _, cmd := range all(root) {
		if cmd.Hidden || cmd == root || !cmd.IsAvailableCommand() || cmd.HasSubCommands() || cmd.Parent().Name() == "completion" {
			continue
		}
		fmt.Fprintf(&b, "## %s\n\n%s\n\n```\n%s\n```\n\n", cmd.CommandPath(), cmd.Long, cmd.UseLine())
		b.WriteString(block("Flags", cmd.NonInheritedFlags().FlagUsages()) + block("Examples", cmd.Example))
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

func block(title, text string) string {
	text = strings.TrimRight(text, "\n")
	if text == "" {
		return ""
	}
	return title + ":\n\n```\n" + text + "\n```\n\n"
}
