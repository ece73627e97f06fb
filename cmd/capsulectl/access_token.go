package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

func newAccessTokenCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Let programs read metrics, and nothing else, by a token"}
	cmd.AddCommand(newAccessTokenCreateCommand(a), newAccessTokenListCommand(a), newAccessTokenRevokeCommand(a))
	return cmd
}

func newAccessTokenCreateCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "create NAME", Short: "Make a token and print it, this once",
		Long: `Makes a token by which a program without a certificate reads "/metrics" on the API's
port, and nothing else: "Authorization: Bearer TOKEN". It is printed this once; the
capsule keeps its hash. While there is one, whoever connects may ask for metrics, and
is refused without it.`,
		Example: "  capsulectl access token create prometheus > capsule-token",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := call(cmd.Context(), a, func(ctx context.Context, c *client) (*capsulev1.TokenServiceCreateResponse, error) {
				return c.tokens.Create(ctx, &capsulev1.TokenServiceCreateRequest{Name: args[0]})
			})
			if err != nil {
				return err
			}
			if a.output == formatTable {
				a.ui.printf("%s\n", answer.GetSecret())
				return nil
			}
			return a.ui.show(a.output, view{names: []string{answer.GetToken().GetName()}, values: []any{answer}, single: true})
		},
	}
}

func newAccessTokenListCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List tokens",
		Long:    "Lists the tokens that may read metrics. USED is since the capsule's service was last started.",
		Example: "  capsulectl access token list",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.read(cmd.Context(), tokenList) },
	})
}

func tokenList(ctx context.Context, a *app) (view, error) {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.TokenServiceListResponse, error) {
		return c.tokens.List(ctx, &capsulev1.TokenServiceListRequest{})
	})
	v := view{columns: []string{"NAME", "MADE BY", "SINCE", "USED"}, empty: "no tokens"}
	for _, t := range answer.GetTokens() {
		used := ""
		if t.GetLastUsed() != nil {
			used = age(t.GetLastUsed().AsTime(), time.Now()) + " ago"
		}
		v.names, v.values = append(v.names, t.GetName()), append(v.values, t)
		v.rows = append(v.rows, []string{t.GetName(), printable(t.GetCreatedBy()), day(t.GetCreatedAt().AsTime()), used})
	}
	return v, err
}

func newAccessTokenRevokeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "revoke NAME", Short: "End a token, at once",
		Example: "  capsulectl access token revoke prometheus",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := call(cmd.Context(), a, func(ctx context.Context, c *client) (*capsulev1.TokenServiceRevokeResponse, error) {
				return c.tokens.Revoke(ctx, &capsulev1.TokenServiceRevokeRequest{Name: args[0]})
			})
			if err == nil {
				a.ui.printf("token %s is revoked\n", args[0])
			}
			return err
		},
	}
}
