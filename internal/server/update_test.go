package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/update"
	"capsule/internal/version"
)

// fetchingUpdates wants ranges of what is pushed, and keeps what it got.
type fetchingUpdates struct {
	offer update.Offer
	want  []update.Range
	got   []byte
	err   error // of the fetch
}

func (u *fetchingUpdates) Push(ctx context.Context, o update.Offer, fetch update.Fetch, progress func(*capsulev1.UpdateProgress)) (*capsulev1.UpdateResult, error) {
	u.offer, u.got = o, make([]byte, o.Size)
	progress(&capsulev1.UpdateProgress{Phase: capsulev1.UpdatePhase_UPDATE_PHASE_WRITE, Total: o.Size})
	u.err = fetch(ctx, u.want, func(offset int64, data []byte) error {
		copy(u.got[offset:], data)
		return nil
	})
	return &capsulev1.UpdateResult{Version: "v2", Slot: "slot_b", Reboots: true}, u.err
}

func (u *fetchingUpdates) Confirm(context.Context) (*capsulev1.UpdateServiceConfirmResponse, error) {
	return &capsulev1.UpdateServiceConfirmResponse{Version: "v2"}, nil
}

func (u *fetchingUpdates) Rollback(context.Context) (*capsulev1.UpdateServiceRollbackResponse, error) {
	return &capsulev1.UpdateServiceRollbackResponse{Version: "v1"}, nil
}

func (u *fetchingUpdates) Status(context.Context) (*capsulev1.UpdateServiceStatusResponse, error) {
	return &capsulev1.UpdateServiceStatusResponse{Version: "v2", Slot: "slot_b"}, nil
}

func (u *fetchingUpdates) Tentative() *capsulev1.TentativeSystem {
	return &capsulev1.TentativeSystem{Left: durationpb.New(time.Minute)}
}

func offerMessage(o *capsulev1.UpdateOffer) *capsulev1.UpdateServicePushRequest {
	return &capsulev1.UpdateServicePushRequest{Part: &capsulev1.UpdateServicePushRequest_Offer{Offer: o}}
}

func dataMessage(offset int64, data []byte) *capsulev1.UpdateServicePushRequest {
	return &capsulev1.UpdateServicePushRequest{Part: &capsulev1.UpdateServicePushRequest_Data{Data: &capsulev1.UpdateData{Offset: offset, Data: data}}}
}

// scattered is every second block of a size, so that none can be joined.
func scattered(size int64) []update.Range {
	const block = 64
	var list []update.Range
	for at := int64(0); at+block <= size; at += 2 * block {
		list = append(list, update.Range{Offset: at, Length: block})
	}
	return list
}

// needed receives until all of the ranges were asked for.
func needed(t *testing.T, stream capsulev1.UpdateService_PushClient, ranges int) []*capsulev1.UpdateRange {
	t.Helper()
	var list []*capsulev1.UpdateRange
	for len(list) < ranges {
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if n := len(answer.GetNeed().GetRanges()); n > updateRangesMax {
			t.Fatalf("%d ranges in one message", n)
		}
		list = append(list, answer.GetNeed().GetRanges()...)
	}
	return list
}

func TestPushFetches(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 80_000)
	u := &fetchingUpdates{want: scattered(int64(len(content)))}
	// A part longer than a message, out of order.
	u.want = append([]update.Range{{Offset: 1<<20 + 64, Length: 100_000}}, slices.DeleteFunc(u.want, func(r update.Range) bool { return r.Offset >= 1<<20 })...)
	b := newBox(t, func(o *Options) { o.Updates = u })
	stream, err := capsulev1.NewUpdateServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN)).Push(limit(t))
	if err != nil {
		t.Fatal(err)
	}
	offer := &capsulev1.UpdateOffer{Header: []byte("head"), Size: int64(len(content)), Force: true, Window: durationpb.New(time.Minute)}
	if err := stream.Send(offerMessage(offer)); err != nil {
		t.Fatal(err)
	}
	ranges := needed(t, stream, len(u.want))
	rand.Shuffle(len(ranges), func(i, j int) { ranges[i], ranges[j] = ranges[j], ranges[i] })
	want := make([]byte, len(content))
	for _, r := range ranges {
		part := content[r.GetOffset() : r.GetOffset()+r.GetLength()]
		copy(want[r.GetOffset():], part)
		half := len(part) / 2
		if err := errors.Join(stream.Send(dataMessage(r.GetOffset()+int64(half), part[half:])), stream.Send(dataMessage(r.GetOffset(), part[:half]))); err != nil {
			t.Fatal(err)
		}
	}
	last, err := stream.Recv()
	if err != nil || !last.GetResult().GetReboots() {
		t.Fatal(last, err)
	}
	if !bytes.Equal(u.got, want) {
		t.Error("what was given is not what was sent")
	}
	u.offer.Header = nil
	if diff := cmp.Diff(update.Offer{Size: int64(len(content)), Force: true, Window: time.Minute}, u.offer); diff != "" {
		t.Error(diff)
	}
	if text := b.log.String(); !strings.Contains(text, "operator=anna") || !strings.Contains(text, "version=v2 slot=slot_b") {
		t.Errorf("the log does not tell who pushed what:\n%s", text)
	}
}

func TestPushRefuses(t *testing.T) {
	offer := offerMessage(&capsulev1.UpdateOffer{Size: 4 << 20})
	for name, c := range map[string]struct {
		send []*capsulev1.UpdateServicePushRequest
		want string
		code codes.Code
	}{
		"no offer":      {[]*capsulev1.UpdateServicePushRequest{dataMessage(0, []byte("x"))}, "begin with its offer", codes.InvalidArgument},
		"empty":         {[]*capsulev1.UpdateServicePushRequest{{}}, "begin with its offer", codes.InvalidArgument},
		"no window":     {[]*capsulev1.UpdateServicePushRequest{offerMessage(&capsulev1.UpdateOffer{Window: &durationpb.Duration{}})}, "window must be above zero", codes.InvalidArgument},
		"wrong time":    {[]*capsulev1.UpdateServicePushRequest{offerMessage(&capsulev1.UpdateOffer{AutoConfirm: &durationpb.Duration{Seconds: 1, Nanos: -1}})}, "auto confirm", codes.InvalidArgument},
		"two offers":    {[]*capsulev1.UpdateServicePushRequest{offer, offer}, "offer once", codes.InvalidArgument},
		"not asked for": {[]*capsulev1.UpdateServicePushRequest{offer, dataMessage(99, []byte("xy"))}, "2 bytes at 99", codes.InvalidArgument},
		"before all":    {[]*capsulev1.UpdateServicePushRequest{offer, dataMessage(0, []byte("xy"))}, "2 bytes at 0", codes.InvalidArgument},
		"over its end":  {[]*capsulev1.UpdateServicePushRequest{offer, dataMessage(199, []byte("xy"))}, "2 bytes at 199", codes.InvalidArgument},
		"twice":         {[]*capsulev1.UpdateServicePushRequest{offer, dataMessage(100, []byte("xy")), dataMessage(101, []byte("x"))}, "1 bytes at 101", codes.InvalidArgument},
		"nothing":       {[]*capsulev1.UpdateServicePushRequest{offer, dataMessage(100, nil)}, "0 bytes", codes.InvalidArgument},
		"negative":      {[]*capsulev1.UpdateServicePushRequest{offer, dataMessage(-1<<63, []byte("x"))}, "not asked for", codes.InvalidArgument},
		"too much":      {[]*capsulev1.UpdateServicePushRequest{offer, dataMessage(1<<20, make([]byte, updateDataMax+1))}, "want 1 to 1048576", codes.InvalidArgument},
		"broken off":    {[]*capsulev1.UpdateServicePushRequest{offer, dataMessage(100, []byte("xy"))}, "closed it before all was sent", codes.Aborted},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, func(o *Options) {
				o.Updates = &fetchingUpdates{want: []update.Range{{Offset: 100, Length: 100}, {Offset: 300, Length: 0}, {Offset: 1 << 20, Length: 2 << 20}}}
			})
			stream, err := capsulev1.NewUpdateServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN)).Push(limit(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range c.send {
				if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
			}
			if err := stream.CloseSend(); err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %v: %s", err, c.code, c.want)
			}
		})
	}
}

// silentCaller has sent an offer and owes the rest.
type silentCaller struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *silentCaller) Context() context.Context { return s.ctx }
func (s *silentCaller) Recv() (*capsulev1.UpdateServicePushRequest, error) {
	<-s.ctx.Done()
	return nil, s.ctx.Err()
}
func (s *silentCaller) Send(*capsulev1.UpdateServicePushResponse) error { return nil }

// A caller that sends nothing ends its push, and one whose push is ended from
// inside is not waited for.
func TestPushDoesNotWaitForEver(t *testing.T) {
	want := []update.Range{{Length: 1}}
	stall := newPush(&silentCaller{ctx: t.Context()}, time.Millisecond)
	defer stall.end()
	if err := stall.fetch(t.Context(), want, nil); !errdefs.IsAborted(err) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ended := newPush(&silentCaller{ctx: t.Context()}, time.Hour)
	defer ended.end()
	if err := ended.fetch(ctx, want, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// In recovery mode nothing is installed or confirmed; one can go back.
func TestUpdatesInRecovery(t *testing.T) {
	b := newBox(t, nil)
	b.machine.reason = "no disk"
	c := capsulev1.NewUpdateServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN))
	if _, err := c.Status(limit(t), &capsulev1.UpdateServiceStatusRequest{}); err != nil {
		t.Error(err)
	}
	_, confirm := c.Confirm(limit(t), &capsulev1.UpdateServiceConfirmRequest{})
	stream, err := c.Push(limit(t))
	if err != nil {
		t.Fatal(err)
	}
	_, push := stream.Recv()
	for _, err := range []error{confirm, push} {
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "update rollback") {
			t.Error(err)
		}
	}
	if r, err := c.Rollback(limit(t), &capsulev1.UpdateServiceRollbackRequest{}); err != nil || r.GetVersion() != "v1" {
		t.Error(r, err)
	}
}

func TestInfoTellsTentative(t *testing.T) {
	b := newBox(t, nil)
	info, err := capsulev1.NewCapsuleServiceClient(b.dial(t, capsulev1.Role_ROLE_READER)).Info(limit(t), &capsulev1.InfoRequest{})
	if err != nil || info.GetTentative().GetLeft().AsDuration() != time.Minute {
		t.Error(info, err)
	}
}

// Every answer names the capsule's version, a refusal too.
func TestAnswersNameVersion(t *testing.T) {
	b := newBox(t, func(o *Options) { o.Version = "v1.2.3" })
	c := capsulev1.NewUpdateServiceClient(b.dial(t, capsulev1.Role_ROLE_READER))
	var answer, refusal metadata.MD
	if _, err := c.Status(limit(t), &capsulev1.UpdateServiceStatusRequest{}, grpc.Header(&answer)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Confirm(limit(t), &capsulev1.UpdateServiceConfirmRequest{}, grpc.Header(&refusal)); status.Code(err) != codes.PermissionDenied {
		t.Fatal(err)
	}
	stream, err := c.Push(limit(t))
	if err != nil {
		t.Fatal(err)
	}
	streamed, err := stream.Header()
	if err != nil {
		t.Fatal(err)
	}
	for _, md := range []metadata.MD{answer, refusal, streamed} {
		if got := md.Get(version.Header); !slices.Equal(got, []string{"v1.2.3"}) {
			t.Errorf("got %q", got)
		}
	}
}
