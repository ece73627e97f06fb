package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"capsule/internal/contexts"
)

// Exit codes, as in every command's help.
const (
	exitFailed   = 1
	exitUsage    = 2
	exitNotReady = 3
	exitRefused  = 4
	exitLost     = 5 // of "convert": the manifests say less than the Compose file
)

// failure is an error with its exit code and the next step, where one is known.
type failure struct {
	code int
	err  error
	hint string
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// remoteExit is the exit code of a command run in a workload, or of one on several
// capsules, whose errors were printed already.
type remoteExit int

func (e remoteExit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usage is a command line that can't be right; one with its own hint keeps it.
func usage(cmd *cobra.Command, err error) error {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	return &failure{code: exitUsage, err: err, hint: fmt.Sprintf("see \"%s --help\"", cmd.CommandPath())}
}

// explain turns any error into a sentence for the operator, an exit code and a
// hint. Errors of gRPC are met here only.
func (a *app) explain(ctx context.Context, err error) *failure {
	if all := joined(err); len(all) > 1 {
		return a.explainAll(ctx, all)
	}
	var f *failure
	if errors.As(err, &f) {
		f.err = withoutClass(f.err)
		return f
	}
	if s, ok := fromGRPC(err); ok {
		return a.explainStatus(ctx, err, s)
	}
	switch {
	case errors.Is(err, contexts.ErrNone):
		return &failure{exitUsage, err, "name one with --capsule, choose one with \"capsulectl context use NAME\", or start one with \"capsulectl lab up\""}
	case errors.Is(err, context.DeadlineExceeded):
		return &failure{exitNotReady, errors.New("not done in time"), "give it longer with --timeout"}
	case ctx.Err() != nil:
		return &failure{exitFailed, errors.New("interrupted"), ""}
	}
	return &failure{exitFailed, withoutClass(err), ""}
}

// joined are the errors of errors.Join, of those within it too; nil for any other.
func joined(err error) []error {
	many, ok := err.(interface{ Unwrap() []error })
	if !ok || errors.Join(many.Unwrap()...).Error() != err.Error() {
		return nil
	}
	var all []error
	for _, one := range many.Unwrap() {
		if inner := joined(one); inner != nil {
			all = append(all, inner...)
		} else {
			all = append(all, one)
		}
	}
	return all
}

// explainAll tells each on a line of its own; the first gives code and hint.
func (a *app) explainAll(ctx context.Context, all []error) *failure {
	first := a.explain(ctx, all[0])
	lines := []string{first.Error()}
	for _, err := range all[1:] {
		lines = append(lines, a.explain(ctx, err).Error())
	}
	return &failure{first.code, errors.New(strings.Join(lines, "\n")), first.hint}
}

// withoutClass drops the class that stands at the end of an error of our own
// packages: people have no use for it.
func withoutClass(err error) error {
	for _, class := range []error{errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition} {
		if text, ok := strings.CutSuffix(err.Error(), ": "+class.Error()); ok {
			return errors.New(text)
		}
	}
	return err
}

func fromGRPC(err error) (*status.Status, bool) {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus(), true
	}
	return nil, false
}

func (a *app) explainStatus(ctx context.Context, err error, s *status.Status) *failure {
	text := errors.New(s.Message())
	switch s.Code() {
	case codes.Unavailable:
		return a.explainUnavailable(s.Message())
	case codes.Unauthenticated:
		if f := a.expired(); f != nil {
			return f
		}
		return &failure{exitRefused, text, a.keysHint()}
	case codes.PermissionDenied:
		return &failure{exitRefused, text, "ask for a certificate with a higher role"}
	case codes.DeadlineExceeded:
		return &failure{exitNotReady, fmt.Errorf("%s did not answer in time", a.where()), ""}
	case codes.Canceled:
		if ctx.Err() != nil {
			return &failure{exitFailed, errors.New("interrupted"), ""}
		}
		return &failure{exitFailed, text, ""}
	case codes.Unimplemented:
		return &failure{exitFailed, fmt.Errorf("%s does not know this: %s", a.where(), s.Message()), "its version may be older than this program's; compare \"capsulectl version\" and \"capsulectl capsule info\""}
	case codes.ResourceExhausted:
		return &failure{exitFailed, text, ""}
	case codes.Internal, codes.Unknown:
		return &failure{exitFailed, text, "the capsule's side is in \"capsulectl capsule logs\""}
	}
	return &failure{exitFailed, text, ""}
}

// broken tells that there was no answer, from an answer that says so of a part of
// the capsule: gRPC has one code for both, and words of its own for the first.
func broken(message string) bool {
	for _, words := range []string{"connection error", "transport", "reading from server", "keepalive", "draining", "goaway", "RST_STREAM", "name resolver", "SubConn", "broken pipe", "connection reset"} {
		if strings.Contains(message, words) {
			return true
		}
	}
	return false
}

// explainUnavailable tells no connection from one that TLS refused, and from a
// part of the capsule that is busy.
func (a *app) explainUnavailable(message string) *failure {
	lower := strings.ToLower(message)
	if f := a.expired(); f != nil && broken(message) {
		return f
	}
	switch {
	case !broken(message):
		return &failure{exitFailed, errors.New(message), "try again in a moment"}
	case strings.Contains(lower, "remote error: tls:"):
		return &failure{exitRefused, fmt.Errorf("%s does not accept this operator's certificate", a.where()), a.keysHint()}
	case strings.Contains(lower, "x509:"), strings.Contains(lower, "certificate"):
		return &failure{exitRefused, fmt.Errorf("%s is not the machine that this context trusts (%s)", a.where(), cause(message)), "another machine may have its address, or it was installed anew; \"capsulectl discover\" shows what is on this network"}
	}
	return &failure{exitFailed, fmt.Errorf("%s does not answer: %s", a.where(), cause(message)), "is it powered on and on this network? \"capsulectl discover\" shows what answers, \"capsulectl context list\" what is known here"}
}

func (a *app) keysHint() string {
	return "the keys are those of the context; \"capsulectl context list\" shows which one is used"
}

// where names the capsule that was asked.
func (a *app) where() string {
	if a.client == nil {
		return "the capsule"
	}
	if a.client.context.Name == "" {
		return "capsule at " + a.client.context.Host
	}
	return fmt.Sprintf("capsule %q at %s", a.client.context.Name, a.client.context.Host)
}

// cause cuts the wrapping that gRPC puts around a system's error.
func cause(message string) string {
	for _, cut := range []string{"desc = \"", "while dialing: ", "dial tcp ", "authentication handshake failed: "} {
		if _, after, ok := strings.Cut(message, cut); ok {
			message = after
		}
	}
	if _, after, ok := strings.Cut(message, "connect: "); ok {
		message = after
	}
	if strings.HasSuffix(message, "i/o timeout") {
		message = "nothing answers"
	}
	return strings.Trim(message, "\"' ")
}

// notFound tells whether the capsule or a local store says that a thing is absent.
func notFound(err error) bool {
	return errdefs.IsNotFound(err) || status.Code(err) == codes.NotFound
}
