package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

// passwordMax of a registry's password, bytes.
const passwordMax = 4096

func newRegistryCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "registry", Aliases: []string{"registries"}, Short: "Tell a capsule how registries are reached"}
	cmd.AddCommand(newRegistryListCommand(a), newRegistrySetCommand(a), newRegistryDeleteCommand(a))
	return cmd
}

func newRegistryListCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List registries with settings of their own",
		Example: "  capsulectl registry list",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.read(cmd.Context(), registryList) },
	})
}

func registryList(ctx context.Context, a *app) (view, error) {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.ListRegistriesResponse, error) {
		return c.images.ListRegistries(ctx, &capsulev1.ListRegistriesRequest{})
	})
	if err != nil {
		return view{}, err
	}
	v := view{columns: []string{"HOST", "USER", "TLS"}, empty: "no registry has settings of its own"}
	for _, r := range answer.GetRegistries() {
		tls := "yes"
		switch {
		case r.GetPlainHttp():
			tls = "no"
		case len(r.GetCaPem()) > 0:
			tls = "own CA"
		}
		v.names, v.values = append(v.names, r.GetHost()), append(v.values, r)
		v.rows = append(v.rows, []string{r.GetHost(), r.GetUsername(), tls})
	}
	return v, nil
}

// RegistryOptions of "registry set".
type RegistryOptions struct {
	Username      string
	PasswordStdin bool
	PlainHTTP     bool
	CA            string
}

func newRegistrySetCommand(a *app) *cobra.Command {
	var o RegistryOptions
	cmd := &cobra.Command{
		Use:   "set HOST[:PORT]",
		Short: "Set how a registry is reached, its login included",
		Long: `Replaces all settings of a registry. The password is asked for, or read from the
standard input with --password-stdin; it is never an argument, and the capsule
never gives it out again.`,
		Example: `  capsulectl registry set registry.lan:5000 --plain-http
  capsulectl registry set ghcr.io --username anna --password-stdin < token`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runRegistrySet(cmd.Context(), a, o, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Username, "username", "", "user of the registry")
	flags.BoolVar(&o.PasswordStdin, "password-stdin", false, "read the password from the standard input")
	flags.BoolVar(&o.PlainHTTP, "plain-http", false, "speak to it without TLS")
	flags.StringVar(&o.CA, "ca", "", "file of PEM certificates that are trusted for it too")
	return cmd
}

func runRegistrySet(ctx context.Context, a *app, o RegistryOptions, host string) error {
	request := &capsulev1.SetRegistryRequest{Registry: &capsulev1.Registry{Host: host, Username: o.Username, PlainHttp: o.PlainHTTP}}
	var err error
	if o.CA != "" {
		if request.Registry.CaPem, err = os.ReadFile(o.CA); err != nil {
			return readError(o.CA, err)
		}
	}
	if request.Password, err = registryPassword(a, o, host); err != nil {
		return err
	}
	_, err = call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.SetRegistryResponse, error) {
		return c.images.SetRegistry(ctx, request)
	})
	if err != nil {
		return err
	}
	a.ui.printf("registry %s set\n", host)
	return nil
}

func registryPassword(a *app, o RegistryOptions, host string) (string, error) {
	switch {
	case o.PasswordStdin && o.Username == "":
		return "", &failure{exitUsage, errors.New("a password without a user"), "add --username"}
	case o.PasswordStdin:
		data, err := io.ReadAll(io.LimitReader(bufio.NewReader(a.ui.in), passwordMax))
		return strings.TrimRight(string(data), "\r\n"), err
	case o.Username == "":
		return "", nil
	case !isTerminal(os.Stdin):
		return "", &failure{exitUsage, errors.New("no terminal to ask for the password on"), "use --password-stdin"}
	}
	return a.ui.password(fmt.Sprintf("Password of %s at %s: ", o.Username, host))
}

func newRegistryDeleteCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete HOST[:PORT]", Aliases: []string{"rm"}, Short: "Forget a registry's settings and login",
		Example: "  capsulectl registry delete ghcr.io",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := call(cmd.Context(), a, func(ctx context.Context, c *client) (*capsulev1.DeleteRegistryResponse, error) {
				return c.images.DeleteRegistry(ctx, &capsulev1.DeleteRegistryRequest{Host: args[0]})
			})
			if err == nil {
				a.ui.printf("registry %s deleted\n", args[0])
			}
			return err
		},
	}
}
