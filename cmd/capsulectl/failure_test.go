package main

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Of several errors none is lost, whatever they are.
func TestExplainTellsAll(t *testing.T) {
	bad := &failure{exitFailed, errors.New(`workload "a": exited with code 7`), "see its logs"}
	late := &failure{exitNotReady, errors.New(`workload "b" not ready`), "it goes on"}
	denied := status.Error(codes.PermissionDenied, "not for readers")
	for _, c := range []struct {
		err  error
		want string
	}{
		{late, `3 workload "b" not ready (it goes on)`},
		{errors.Join(nil, late), `3 workload "b" not ready (it goes on)`},
		{errors.Join(bad, late), "1 workload \"a\": exited with code 7\nworkload \"b\" not ready (see its logs)"},
		{errors.Join(denied, late), "4 not for readers\nworkload \"b\" not ready (ask for a certificate with a higher role)"},
		{errors.Join(denied, errors.Join(status.Error(codes.NotFound, "no such volume"))), "4 not for readers\nno such volume (ask for a certificate with a higher role)"},
		{status.Error(codes.Unavailable, "volumes are not ready yet"), "1 volumes are not ready yet (try again in a moment)"},
		{status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`), "1 the capsule does not answer: connection refused (is it powered on and on this network? \"capsulectl discover\" shows what answers, \"capsulectl context list\" what is known here)"},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), "1 the capsule does not answer: error reading from server: EOF (is it powered on and on this network? \"capsulectl discover\" shows what answers, \"capsulectl context list\" what is known here)"},
		{fmt.Errorf("%w: %w", late, errors.New("no list")), `3 workload "b" not ready (it goes on)`},
	} {
		f := (&app{}).explain(t.Context(), c.err)
		if got := fmt.Sprintf("%d %s (%s)", f.code, f, f.hint); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// What failed is told also when others are not ready in time.
func TestWaitTellsFailuresWhenLate(t *testing.T) {
	bad := errors.New("it failed")
	u := &ui{out: io.Discard, err: io.Discard}
	w := &waiter{app: &app{ui: u}, left: map[string]target{"b": {name: "b"}}, errs: []error{bad}, line: statusLine{ui: u}}
	f := (*failure)(nil)
	if err := w.late(time.Second); !errors.Is(err, bad) || !errors.As(err, &f) || f.code != exitNotReady {
		t.Error(err)
	}
}
