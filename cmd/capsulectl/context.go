package main

import (
	"time"

	"github.com/spf13/cobra"

	"capsule/internal/contexts"
	"capsule/internal/identity"
)

func newContextCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "context", Aliases: []string{"contexts"}, Short: "Choose among the capsules known on this machine"}
	cmd.AddCommand(newContextListCommand(a), newContextUseCommand(a), newContextDeleteCommand(a))
	return cmd
}

// contextFacts is a context without its keys.
type contextFacts struct {
	Name        string     `json:"name"`
	Host        string     `json:"host"`
	Current     bool       `json:"current"`
	Operator    string     `json:"operator,omitempty"`
	Role        string     `json:"role,omitempty"`
	Until       *time.Time `json:"until,omitempty"`
	Fingerprint string     `json:"fingerprint,omitempty"`
	Keychain    bool       `json:"keychain"`
}

// factsOf leaves out what can't be read: a context is listed all the same.
func factsOf(c contexts.Context, name string, current bool) contextFacts {
	f := contextFacts{Name: name, Host: c.Host, Current: current, Keychain: c.Keychain()}
	if cert, err := c.Leaf(); err == nil {
		role, _ := identity.Role(cert) //nolint:errcheck // none is shown as none
		f.Operator, f.Role, f.Until = cert.Subject.CommonName, identity.RoleName(role), &cert.NotAfter
	}
	if ca, err := c.Authority(); err == nil {
		f.Fingerprint = identity.Fingerprint(ca)
	}
	return f
}

func (f contextFacts) row(now time.Time) []string {
	mark, until, key := " ", "", "file"
	if f.Current {
		mark = "*"
	}
	if f.Until != nil {
		until = untilText(*f.Until, now)
	}
	if f.Keychain {
		key = "keychain"
	}
	return []string{mark, f.Name, f.Host, f.Operator, f.Role, until, key}
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
	v := view{columns: []string{"CURRENT", "NAME", "HOST", "OPERATOR", "ROLE", "UNTIL", "KEY"}, names: names, empty: "no contexts; \"capsulectl claim NAME\" and \"capsulectl lab up\" make one"}
	for _, name := range names {
		c, err := store.Get(name)
		if err != nil {
			a.ui.warn(err.Error())
		}
		facts := factsOf(c, name, name == current)
		v.rows, v.values = append(v.rows, facts.row(time.Now())), append(v.values, facts)
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
