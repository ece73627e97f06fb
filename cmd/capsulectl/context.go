package main

import (
	"github.com/spf13/cobra"

	"capsule/internal/contexts"
)

func newContextCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "context", Aliases: []string{"contexts"}, Short: "Choose among the capsules known on this machine"}
	cmd.AddCommand(newContextListCommand(a), newContextUseCommand(a), newContextDeleteCommand(a))
	return cmd
}

// contextFacts is a context without its keys.
type contextFacts struct {
	Name    string `json:"name"`
	Host    string `json:"host"`
	Current bool   `json:"current"`
}

func newContextListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List contexts; the current one is marked",
		Example: "  capsulectl context list",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return runContextList(a) },
	}
}

func runContextList(a *app) error {
	store, err := contexts.Open("")
	if err != nil {
		return err
	}
	names, err := store.List()
	if err != nil {
		return err
	}
	current, err := store.Current()
	if err != nil {
		return err
	}
	v := view{columns: []string{"CURRENT", "NAME", "HOST"}, names: names, empty: "no contexts; \"capsulectl lab up\" makes one"}
	for _, name := range names {
		c, err := store.Get(name)
		if err != nil {
			a.ui.warn(err.Error())
		}
		mark := " "
		if name == current {
			mark = "*"
		}
		v.rows = append(v.rows, []string{mark, name, c.Host})
		v.values = append(v.values, contextFacts{name, c.Host, name == current})
	}
	return a.ui.show(a.output, v)
}

func newContextUseCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "Make a context the current one",
		Example: "  capsulectl context use lab",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			store, err := contexts.Open("")
			if err != nil {
				return err
			}
			if err := store.Use(args[0]); err != nil {
				return unknownContext(err)
			}
			a.ui.printf("context %s is current\n", args[0])
			return nil
		},
	}
}

func newContextDeleteCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Forget a context with its keys",
		Example: "  capsulectl context delete lab",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			store, err := contexts.Open("")
			if err != nil {
				return err
			}
			if err := store.Delete(args[0]); err != nil {
				return unknownContext(err)
			}
			a.ui.printf("context %s deleted\n", args[0])
			return nil
		},
	}
}

const contextsHint = "\"capsulectl context list\" shows those there are"

func unknownContext(err error) error {
	if notFound(err) {
		return &failure{exitFailed, err, contextsHint}
	}
	return err
}
