package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/audit"
	"capsule/internal/workload"
)

// debugBox runs commands as processes of the test.
func debugBox(t *testing.T) (*box, *audit.Log) {
	t.Helper()
	log, err := audit.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	return newBox(t, func(o *Options) {
		o.Audit = log
		o.Debug = func(ctx context.Context, e workload.Exec) (int, error) {
			return hostDriver{}.Exec(ctx, workload.ID{}, e)
		}
	}), log
}

// debug runs a command as an operator of a role.
func (b *box) debug(t *testing.T, role capsulev1.Role, start *capsulev1.ExecStart) (out string, code int32, err error) {
	t.Helper()
	stream, err := capsulev1.NewDebugServiceClient(b.dial(t, role)).Run(limit(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, code, nil
		}
		if err != nil {
			return out, code, err
		}
		out += string(answer.GetStdout())
		code = answer.GetExit().GetCode()
	}
}

func TestDebugIsForAdmins(t *testing.T) {
	b, log := debugBox(t)
	for _, c := range []struct {
		role  capsulev1.Role
		start *capsulev1.ExecStart
		code  codes.Code
	}{
		{capsulev1.Role_ROLE_OPERATOR, &capsulev1.ExecStart{Command: []string{"true"}}, codes.PermissionDenied},
		{capsulev1.Role_ROLE_READER, &capsulev1.ExecStart{Command: []string{"true"}}, codes.PermissionDenied},
		{capsulev1.Role_ROLE_ADMIN, &capsulev1.ExecStart{Name: "web", Command: []string{"true"}}, codes.InvalidArgument},
		{capsulev1.Role_ROLE_ADMIN, &capsulev1.ExecStart{User: "app", Command: []string{"true"}}, codes.InvalidArgument},
	} {
		if _, _, err := b.debug(t, c.role, c.start); status.Code(err) != c.code {
			t.Errorf("%v, %v: %v", c.role, c.start, err)
		}
	}
	b.machine.reason = "no /perm" // that is when it is needed
	out, code, err := b.debug(t, capsulev1.Role_ROLE_ADMIN, &capsulev1.ExecStart{Command: []string{"sh", "-c", "echo hi; exit 3"}})
	if out != "hi\n" || code != 3 || err != nil {
		t.Fatalf("%q, code %d, %v", out, code, err)
	}
	var got []string
	err = log.Read(t.Context(), audit.Query{Tail: 2}, func(r audit.Record) error {
		got = append(got, strings.Join([]string{r.Operator, r.Method, r.Object, r.Code}, " | "))
		return nil
	})
	want := []string{"anna | DebugService/Run | sh -c echo hi; exit 3 | Running", "anna | DebugService/Run | sh -c echo hi; exit 3 | OK"}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestShownCommand(t *testing.T) {
	for want, command := range map[string][]string{
		"a shell": nil, "lvm lvs": {"lvm", "lvs"}, "?": {"\xff"},
		strings.Repeat("é", commandShown/2) + "…": {strings.Repeat("é", commandShown)},
	} {
		if got := shownCommand(command); got != want {
			t.Errorf("%q is shown as %q", command, got)
		}
	}
}
