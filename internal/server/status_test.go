package server

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"capsule/internal/store"
)

func syscallSignal(n int) unix.Signal { return unix.Signal(n) }

func mkfifo(path string) error { return unix.Mkfifo(path, 0o600) }

func TestStatusOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{fmt.Errorf("workload %q: %w", "a", errdefs.ErrNotFound), codes.NotFound, `workload "a"`},
		{fmt.Errorf("port is taken: %w", errdefs.ErrAlreadyExists), codes.AlreadyExists, "port is taken"},
		{fmt.Errorf("x: %w", errdefs.ErrInvalidArgument), codes.InvalidArgument, "x"},
		{fmt.Errorf("x: %w", errdefs.ErrPermissionDenied), codes.PermissionDenied, "x"},
		{fmt.Errorf("x: %w", errdefs.ErrUnauthenticated), codes.Unauthenticated, "x"},
		{fmt.Errorf("x: %w", errdefs.ErrResourceExhausted), codes.ResourceExhausted, "x"},
		{fmt.Errorf("x: %w", errdefs.ErrFailedPrecondition), codes.FailedPrecondition, "x"},
		{fmt.Errorf("x: %w", errdefs.ErrAborted), codes.Aborted, "x"},
		{fmt.Errorf("x: %w", errdefs.ErrNotImplemented), codes.Unimplemented, "x"},
		{fmt.Errorf("x: %w", errdefs.ErrUnavailable), codes.Unavailable, "x"},
		{fmt.Errorf("x: %w", errdefs.ErrDataLoss), codes.DataLoss, "x"},
		{fmt.Errorf("x: %w", context.Canceled), codes.Canceled, "x"},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "x"},
		{fmt.Errorf("x: %w", store.ErrUnreadable), codes.FailedPrecondition, "x"},
		{errors.Join(fmt.Errorf("a: %w", errdefs.ErrNotFound), fmt.Errorf("b: %w", errdefs.ErrNotFound)), codes.NotFound, "a\nb"},
		{errors.New("disk is on fire"), codes.Internal, "disk is on fire"},
		{fmt.Errorf("ask containerd: %w", status.Error(codes.Unavailable, "down")), codes.Unavailable, "ask containerd: rpc error: code = Unavailable desc = down"},
	} {
		s := status.Convert(statusOf(c.err))
		if s.Code() != c.code || s.Message() != c.text {
			t.Errorf("%v: got %v %q", c.err, s.Code(), s.Message())
		}
	}
	if statusOf(nil) != nil {
		t.Error("nil is an error")
	}
}
