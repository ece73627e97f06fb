package microvm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	guestv1 "capsule/api/capsule/guest/v1"
	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/instance"
	"capsule/internal/process"
	"capsule/internal/workload"
)

// classes are all that a guest's refusal can become.
var classes = []error{
	errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition,
	errdefs.ErrResourceExhausted, errdefs.ErrUnavailable, errdefs.ErrUnknown,
}

func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		code  codes.Code
		text  string
		class error
		want  string
	}{
		{codes.InvalidArgument, `user "ghost" is not there`, errdefs.ErrInvalidArgument, `user "ghost" is not there`},
		{codes.Unauthenticated, "\x1b[31mred\nline", errdefs.ErrUnknown, "?[31mred line"},
		{codes.Code(4_000_000), "", errdefs.ErrUnknown, "the guest says not why"},
		{codes.Unavailable, strings.Repeat("ü", 400), errdefs.ErrUnavailable, strings.Repeat("ü", textMax/2)},
		{codes.Unavailable, `connection error: desc = "error reading server preface: EOF"`, errdefs.ErrUnavailable, "the line to the guest broke"},
		{codes.Unavailable, "error reading from server: EOF", errdefs.ErrUnavailable, "the line to the guest broke"},
		{codes.NotFound, "turn \u202e round", errdefs.ErrNotFound, "turn ? round"},
	} {
		err := refused(t.Context(), status.Error(tc.code, tc.text))
		if !errors.Is(err, tc.class) || err.Error() != tc.want {
			t.Errorf("%v %q became %q", tc.code, tc.text, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := refused(ctx, status.Error(codes.Internal, "x")); !errors.Is(err, context.Canceled) {
		t.Errorf("of a caller who left: %v", err)
	}
	if err := refused(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

func TestEnding(t *testing.T) {
	for _, tc := range []struct {
		in   *guestv1.Ending
		want instance.Ending
	}{
		{&guestv1.Ending{Code: 3}, instance.Ending{Code: 3}},
		{&guestv1.Ending{Code: -1}, instance.Ending{Code: codeMax}},
		{&guestv1.Ending{Code: 256}, instance.Ending{Code: codeMax}},
		{&guestv1.Ending{Oom: true}, instance.Ending{Code: process.Killed, OOM: true}},
		{nil, instance.Ending{Code: codeMax, Note: "the guest says not how"}},
		{&guestv1.Ending{UnmountError: "busy\x00"}, instance.Ending{Note: "its disks were not written out: busy?"}},
	} {
		if got := ending(tc.in); got != tc.want {
			t.Errorf("%v became %+v, want %+v", tc.in, got, tc.want)
		}
	}
}

// A liar is a guest that answers with given bytes, taken for what was asked.
type liar struct {
	guestv1.GuestServiceClient
	answers [][]byte
	status  error
}

func (l *liar) next(m proto.Message) error {
	if len(l.answers) == 0 {
		if l.status == nil {
			return io.EOF
		}
		return l.status
	}
	b := l.answers[0]
	l.answers = l.answers[1:]
	if err := proto.Unmarshal(b, m); err != nil {
		return status.Error(codes.Internal, err.Error()) // as gRPC does
	}
	return nil
}

func (l *liar) Stats(context.Context, *guestv1.StatsRequest, ...grpc.CallOption) (*guestv1.StatsResponse, error) {
	r := &guestv1.StatsResponse{}
	return r, l.next(r)
}

func (l *liar) Exec(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[capsulev1.ExecRequest, capsulev1.ExecResponse], error) {
	return &lies[capsulev1.ExecRequest, capsulev1.ExecResponse]{liar: l}, nil
}

func (l *liar) CopyFrom(context.Context, *capsulev1.CopyFromRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[capsulev1.CopyFromResponse], error) {
	return &lies[capsulev1.CopyFromRequest, capsulev1.CopyFromResponse]{liar: l}, nil
}

// lies are a stream of answers.
type lies[Req, Res any] struct {
	grpc.ClientStream
	liar *liar
}

func (s *lies[Req, Res]) Send(*Req) error { return nil }

func (s *lies[Req, Res]) Recv() (*Res, error) {
	r := new(Res)
	return r, s.liar.next(any(r).(proto.Message))
}

// Whatever a guest answers, what comes of it is bounded and of few kinds.
func FuzzGuest(f *testing.F) {
	exit, err := proto.Marshal(&capsulev1.ExecResponse{Output: &capsulev1.ExecResponse_Exit{
		Exit: &capsulev1.ExecExit{Code: -7, Message: "\x1b]0;title\a"}}})
	if err != nil {
		f.Fatal(err)
	}
	text, err := proto.Marshal(&capsulev1.ExecResponse{Output: &capsulev1.ExecResponse_Stdout{Stdout: []byte("out")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(3), "why", text, exit)
	f.Add(uint32(99), "\xff\u202e", []byte{0x0a}, []byte(nil))
	f.Fuzz(func(t *testing.T, code uint32, why string, first, second []byte) {
		answers := func() *agent {
			return &agent{GuestServiceClient: &liar{answers: [][]byte{first, second}, status: status.Error(codes.Code(code), why)}}
		}
		var out, errs, tar bytes.Buffer
		x := workload.Exec{Command: []string{"x"}, Stdout: &out, Stderr: &errs}
		exit, err := answers().exec(t.Context(), x)
		got := told(workload.ID{Name: "w"}, x, exit)
		if got < 0 || got > codeMax {
			t.Errorf("code %d", got)
		}
		if n := out.Len() + errs.Len(); n > len(first)+len(second)+textMax+len("capsule: \n") {
			t.Errorf("%d bytes of output out of %d", n, len(first)+len(second))
		}
		mild(t, err)
		mild(t, answers().copyFrom(t.Context(), "/", &tar))
		st, err := answers().stats(t.Context(), patience)
		mild(t, err)
		if st.CPUTime < 0 || st.PIDs > pidsMax || st.MemoryBytes > memoryMax {
			t.Errorf("use %+v", st)
		}
		var e guestv1.Ending
		if proto.Unmarshal(first, &e) == nil {
			how := ending(&e)
			if how.Code < 0 || how.Code > codeMax || len(how.Note) > 2*textMax {
				t.Errorf("%+v", how)
			}
			if again, ok := instance.ParseEnding(how.String()); !ok || again.Code != how.Code || again.OOM != how.OOM {
				t.Errorf("%+v is kept as %q", how, how.String())
			}
		}
	})
}

// mild checks an error that a guest caused.
func mild(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if !slices.ContainsFunc(classes, func(c error) bool { return errors.Is(err, c) }) {
		t.Errorf("%v has no class", err)
	}
	text := err.Error()
	if len(text) > 2*textMax || !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("%q", text)
	}
}
