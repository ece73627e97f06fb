package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/identity"
)

func newAccessCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "access", Short: "Say who may enter a capsule, and as what"}
	cmd.AddCommand(newAccessListCommand(a), newAccessRequestCommand(a), newAccessGrantCommand(a), newAccessAcceptCommand(a),
		newAccessRevokeCommand(a), newAccessRenewCommand(a), newAccessTokenCommand(a), newAccessRolesCommand(a))
	return cmd
}

func newAccessListCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List who may enter the capsule",
		Long: `Lists the keys that the capsule lets in, with the operator's name and role of each.
Only those may enter, whatever certificates there are. SEEN is since the capsule's
service was last started. The one that you use is marked.`,
		Example: "  capsulectl access list",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.read(cmd.Context(), accessList) },
	})
}

func accessList(ctx context.Context, a *app) (view, error) {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.ListOperatorsResponse, error) {
		return c.access.ListOperators(ctx, &capsulev1.ListOperatorsRequest{})
	})
	return operatorView(answer.GetOperators(), time.Now()), err
}

func operatorView(operators []*capsulev1.Operator, now time.Time) view {
	v := view{columns: []string{"YOU", "NAME", "ROLE", "KEY", "LET IN BY", "SINCE", "UNTIL", "SEEN"}, empty: "nobody; the first certificate that is used is noted"}
	for _, o := range operators {
		mark, seen := " ", ""
		if o.GetSelf() {
			mark = "*"
		}
		if o.GetLastSeen() != nil {
			seen = age(o.GetLastSeen().AsTime(), now) + " ago"
		}
		v.names, v.values = append(v.names, o.GetName()), append(v.values, o)
		v.rows = append(v.rows, []string{
			mark, o.GetName(), identity.RoleName(o.GetRole()), shortKey(o.GetKeyFingerprint()), o.GetGrantedBy(),
			day(o.GetGrantedAt().AsTime()), untilText(o.GetNotAfter().AsTime(), now), seen,
		})
	}
	return v
}

// shortKey is enough of a key's fingerprint to name it; all of it is in the JSON.
func shortKey(fingerprint string) string {
	const shown = 3 // groups
	groups := strings.SplitN(fingerprint, ":", shown+1)
	return strings.Join(groups[:min(shown, len(groups))], ":")
}

func day(t time.Time) string { return t.Local().Format(time.DateOnly) }

func untilText(t, now time.Time) string {
	if t.Before(now) {
		return day(t) + " (over)"
	}
	return day(t)
}

func newAccessRevokeCommand(a *app) *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use: "revoke NAME", Short: "Shut an operator out, at once",
		Long: `Takes the keys of an operator off the capsule's list: connections that are open end
too. --key takes only the key whose fingerprint begins so, as "access list" shows
it. The last admin can't be revoked.`,
		Example: `  capsulectl access revoke ann
  capsulectl access revoke ann --key 3f2a:91c0`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runAccessRevoke(cmd.Context(), a, args[0], key) },
	}
	cmd.Flags().StringVar(&key, "key", "", "only the key whose fingerprint begins so")
	return cmd
}

func runAccessRevoke(ctx context.Context, a *app, name, key string) error {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.RevokeOperatorResponse, error) {
		return c.access.RevokeOperator(ctx, &capsulev1.RevokeOperatorRequest{Name: name, KeyFingerprint: key})
	})
	if err != nil {
		return err
	}
	if a.output != formatTable {
		return a.ui.show(a.output, operatorView(answer.GetOperators(), time.Now()))
	}
	for _, o := range answer.GetOperators() {
		a.ui.printf("%s (%s, key %s) is shut out\n", o.GetName(), identity.RoleName(o.GetRole()), shortKey(o.GetKeyFingerprint()))
	}
	return nil
}

func newAccessRolesCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "roles", Short: "Show what each role may do",
		Long: `Shows each call of the API with the least role that may make it, as this program
knows it; each role may also do what those below it may. A reader looks, an operator
changes what runs, an admin changes the machine and who may enter.`,
		Example: "  capsulectl access roles",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return a.ui.show(a.output, rolesView(methods())) },
	}
}

// method is a call of the API and the least role that may make it.
type method struct {
	Service string `json:"service"`
	Method  string `json:"method"`
	Role    string `json:"role"`
	role    capsulev1.Role
}

// methods reads roles where the capsule does: in the descriptors of the API.
func methods() []method {
	var all []method
	protoregistry.GlobalFiles.RangeFilesByPackage("capsule.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				role, _ := proto.GetExtension(m.Options(), capsulev1.E_Role).(capsulev1.Role)
				all = append(all, method{strings.TrimSuffix(string(service.Name()), "Service"), string(m.Name()), roleName(role), role})
			}
		}
		return true
	})
	all = append(all, kindRoles()...)
	slices.SortFunc(all, func(a, b method) int {
		if a.role != b.role {
			return rank(a.role) - rank(b.role)
		}
		return strings.Compare(a.Service+"."+a.Method, b.Service+"."+b.Method)
	})
	return all
}

// kindRoles are Apply and Delete of the kinds that ask for more than other kinds do.
func kindRoles() []method {
	var all []method
	fields := (*capsulev1.Object)(nil).ProtoReflect().Descriptor().Oneofs().ByName("kind").Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		role, _ := proto.GetExtension(f.Options(), capsulev1.E_KindRole).(capsulev1.Role)
		if role == capsulev1.Role_ROLE_UNSPECIFIED {
			continue
		}
		for _, name := range []string{"Apply", "Delete"} {
			all = append(all, method{"Object", fmt.Sprintf("%s (kind %s)", name, f.Message().Name()), roleName(role), role})
		}
	}
	return all
}

// roleName has a word also for calls that need no certificate.
func roleName(role capsulev1.Role) string {
	if role == capsulev1.Role_ROLE_NOBODY {
		return "nobody"
	}
	return identity.RoleName(role)
}

// rank orders roles by what they may do.
func rank(role capsulev1.Role) int {
	if role == capsulev1.Role_ROLE_NOBODY {
		return 0
	}
	return int(role)
}

// roleNotes say in a few words what a role is for.
var roleNotes = map[string]string{
	"nobody":   "whoever connects; the call asks for a proof of its own",
	"reader":   "sees state and logs; changes nothing",
	"operator": "also changes workloads, volumes and images, and enters workloads",
	"admin":    "also changes the machine itself, and who may enter",
}

func rolesView(all []method) view {
	v := view{columns: []string{"ROLE", "CALLS"}, below: &view{columns: []string{"ROLE", "WHAT IT IS FOR"}}}
	byRole := map[string][]string{}
	var order []string
	for _, m := range all {
		name := m.Service + "." + m.Method
		v.names, v.values = append(v.names, name), append(v.values, m)
		if byRole[m.Role] == nil {
			order = append(order, m.Role)
		}
		byRole[m.Role] = append(byRole[m.Role], name)
	}
	for _, role := range order {
		v.below.rows = append(v.below.rows, []string{role, roleNotes[role]})
		for _, name := range byRole[role] {
			v.rows = append(v.rows, []string{role, name})
		}
	}
	return v
}

// lifetime reads how long a certificate is to be good: "90d", "2y", "36h".
func lifetime(text string) (time.Duration, error) {
	days := map[string]int{"d": 1, "y": 365}
	for unit, n := range days {
		digits, ok := strings.CutSuffix(text, unit)
		if !ok {
			continue
		}
		var count int
		if _, err := fmt.Sscanf(digits+"\n", "%d\n", &count); err == nil && count > 0 && count <= 100*365 {
			return time.Duration(count*n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is no time; write 90d, 2y or 36h", text)
	}
	return d, nil
}
