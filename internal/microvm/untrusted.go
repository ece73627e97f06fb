package microvm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestv1 "capsule/api/capsule/guest/v1"
	"capsule/internal/instance"
	"capsule/internal/process"
)

// A guest is the workload's own: its kernel may be taken over, and then all that
// the agent seems to say is the attacker's. This file holds what is believed.

const (
	messageMax = 1 << 20 // bytes of one message from a guest
	textMax    = 512     // bytes of a sentence from a guest
	codeMax    = 255     // exit codes
	pidsMax    = 1 << 22 // the kernel's PID_MAX_LIMIT
	timeMax    = 100 * 365 * 24 * time.Hour
)

// refusal is what a guest answered instead of doing something: one of few
// classes, and words that were cleaned.
type refusal struct {
	class error
	text  string
}

func (r *refusal) Error() string        { return r.text }
func (r *refusal) Is(target error) bool { return target == r.class }

// refused turns an error of a call to the agent into one of ours.
func refused(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	st, ok := status.FromError(err)
	if !ok {
		return err // ours: a reader or writer of the caller failed
	}
	text := clean(st.Message())
	if st.Code() == codes.Unavailable && broken(text) {
		text = "the line to the guest broke"
	}
	return &refusal{class: class(st.Code()), text: text}
}

// broken tells gRPC's own words from a guest's: those name a connection, which an
// operator would take for the one to the capsule.
func broken(text string) bool {
	for _, words := range []string{"connection error", "transport", "reading from server", "draining"} {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}

// class of a status code. What a guest has no business to say is Unknown.
func class(c codes.Code) error {
	switch c {
	case codes.InvalidArgument:
		return errdefs.ErrInvalidArgument
	case codes.NotFound:
		return errdefs.ErrNotFound
	case codes.AlreadyExists:
		return errdefs.ErrAlreadyExists
	case codes.FailedPrecondition:
		return errdefs.ErrFailedPrecondition
	case codes.ResourceExhausted:
		return errdefs.ErrResourceExhausted
	case codes.Unavailable, codes.DeadlineExceeded:
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrUnknown
}

// clean makes a short line of printable characters of what a guest said.
func clean(text string) string {
	if len(text) > textMax {
		text = text[:textMax]
	}
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r == unicode.ReplacementChar || !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, text)
	// Three bytes may stand for one that was none.
	for len(text) > textMax {
		text = text[:len(text)-1]
	}
	text = strings.TrimSpace(strings.ToValidUTF8(text, ""))
	if text == "" {
		return "the guest says not why"
	}
	return text
}

// exitCode is what a guest says a program ended with. Nonsense is no success.
func exitCode(code int32) int {
	if code < 0 || code > codeMax {
		return codeMax
	}
	return int(code)
}

// ending is how the payload ended by what the guest says.
func ending(e *guestv1.Ending) instance.Ending {
	how := instance.Ending{Code: exitCode(e.GetCode()), OOM: e.GetOom()}
	if how.OOM {
		how.Code = process.Killed
	}
	if e == nil {
		how.Code = codeMax
		how.Note = "the guest says not how"
	}
	if e.GetUnmountError() != "" {
		how.Note = fmt.Sprintf("its disks were not written out: %s", clean(e.GetUnmountError()))
	}
	return how
}

// lost tells that a call broke off because there is nobody to talk to.
func lost(err error) bool {
	return errors.Is(err, errdefs.ErrUnavailable)
}
