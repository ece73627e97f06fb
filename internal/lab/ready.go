//go:build unix

package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
)

// NotReady says that a machine's API did not come up in time.
type NotReady struct {
	Machine string
	After   time.Duration
	Ended   bool   // QEMU is gone
	Cause   error  // of the last try
	Console string // last lines
}

func (e *NotReady) Error() string {
	text := fmt.Sprintf("machine %q is not ready after %v", e.Machine, e.After.Round(time.Second))
	if e.Ended {
		text = fmt.Sprintf("machine %q ended after %v", e.Machine, e.After.Round(time.Second))
	}
	if e.Cause != nil {
		text += ": " + e.Cause.Error()
	}
	return text + "\nconsole:\n  " + strings.ReplaceAll(strings.TrimSpace(e.Console), "\n", "\n  ")
}

func (e *NotReady) Unwrap() error { return e.Cause }

// errEnded is the cause when QEMU is gone.
var errEnded = errors.New("QEMU ended")

func (m *Machine) dial() (*grpc.ClientConn, error) {
	c, err := m.Context()
	if err != nil {
		return nil, err
	}
	return c.Dial()
}

// WaitReady waits until the API answers an operator, telling what the console
// shows meanwhile.
func (m *Machine) WaitReady(ctx context.Context) error {
	conn, err := m.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	limit := m.readyMax
	if limit == 0 {
		limit = readyMax
	}
	began := time.Now()
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	go m.follow(ctx, fail)
	info, err := capsulev1.NewCapsuleServiceClient(conn).Info(ctx, &capsulev1.InfoRequest{}, grpc.WaitForReady(true))
	if err == nil {
		m.say("%s answers after %.1f s", info.GetName(), time.Since(began).Seconds())
		return nil
	}
	if outer.Err() != nil {
		return outer.Err()
	}
	if code := status.Code(err); code != codes.DeadlineExceeded && code != codes.Canceled && code != codes.Unavailable {
		return fmt.Errorf("machine %q: %w", m.Name, err)
	}
	return &NotReady{
		Machine: m.Name, After: time.Since(began), Ended: errors.Is(context.Cause(ctx), errEnded),
		Cause: errors.New(status.Convert(err).Message()), Console: m.consoleTail(),
	}
}
