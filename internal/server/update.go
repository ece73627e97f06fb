package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/update"
)

// Updates is what of the update manager the API needs.
type Updates interface {
	Push(ctx context.Context, o update.Offer, fetch update.Fetch, progress func(*capsulev1.UpdateProgress)) (*capsulev1.UpdateResult, error)
	Confirm(ctx context.Context) (*capsulev1.UpdateServiceConfirmResponse, error)
	Rollback(ctx context.Context) (*capsulev1.UpdateServiceRollbackResponse, error)
	Status(ctx context.Context) (*capsulev1.UpdateServiceStatusResponse, error)
	// Tentative is nil when the running system is confirmed.
	Tentative() *capsulev1.TentativeSystem
}

// Limits of a push.
const (
	updateDataMax   = 1 << 20 // bytes of the bundle in one message
	updateRangesMax = 4096    // in one message that asks for them
)

type updates struct {
	capsulev1.UnimplementedUpdateServiceServer
	Options
	stallMax time.Duration
}

func newUpdates(o Options) *updates { return &updates{Options: o, stallMax: stallMax} }

func (s *updates) Confirm(ctx context.Context, _ *capsulev1.UpdateServiceConfirmRequest) (*capsulev1.UpdateServiceConfirmResponse, error) {
	return s.Updates.Confirm(ctx)
}

func (s *updates) Rollback(ctx context.Context, _ *capsulev1.UpdateServiceRollbackRequest) (*capsulev1.UpdateServiceRollbackResponse, error) {
	return s.Updates.Rollback(ctx)
}

func (s *updates) Status(ctx context.Context, _ *capsulev1.UpdateServiceStatusRequest) (*capsulev1.UpdateServiceStatusResponse, error) {
	return s.Updates.Status(ctx)
}

func (s *updates) Push(stream capsulev1.UpdateService_PushServer) error {
	p := newPush(stream, s.stallMax)
	defer p.end()
	first, err := p.receive(stream.Context())
	if err != nil {
		return err
	}
	offer, err := offerOf(first.GetOffer())
	if err != nil {
		return err
	}
	log := s.Log.With("size", offer.Size, "allow_downgrade", offer.AllowDowngrade, "force", offer.Force)
	result, err := s.Updates.Push(stream.Context(), offer, p.fetch, p.progress)
	if err != nil {
		log.Warn("update not installed", "error", err)
		return err
	}
	log.Info("update pushed", "version", result.GetVersion(), "slot", result.GetSlot(), "unchanged", result.GetUnchanged(), "reboots", result.GetReboots())
	return p.send(&capsulev1.UpdateServicePushResponse{Part: &capsulev1.UpdateServicePushResponse_Result{Result: result}})
}

// offerOf is an offer as the manager takes it. What it means is the manager's.
func offerOf(o *capsulev1.UpdateOffer) (update.Offer, error) {
	if o == nil {
		return update.Offer{}, fmt.Errorf("a push must begin with its offer: %w", errdefs.ErrInvalidArgument)
	}
	for _, d := range []struct {
		name  string
		value *durationpb.Duration
	}{{"window", o.GetWindow()}, {"auto confirm", o.GetAutoConfirm()}} {
		if d.value != nil && (!d.value.IsValid() || d.value.AsDuration() <= 0) {
			return update.Offer{}, fmt.Errorf("%s must be above zero: %w", d.name, errdefs.ErrInvalidArgument)
		}
	}
	return update.Offer{
		Header: o.GetHeader(), Size: o.GetSize(),
		AllowDowngrade: o.GetAllowDowngrade(), Force: o.GetForce(), NoReboot: o.GetNoReboot(),
		Window: o.GetWindow().AsDuration(), AutoConfirm: o.GetAutoConfirm().AsDuration(),
	}, nil
}

// push is one push under way. Its caller sends no faster than what it sends is
// taken: one message is read ahead, the rest waits in the stream's own window.
type push struct {
	stream   capsulev1.UpdateService_PushServer
	stallMax time.Duration
	messages chan pushMessage
	ended    chan struct{}
}

type pushMessage struct {
	*capsulev1.UpdateServicePushRequest
	err error
}

func newPush(stream capsulev1.UpdateService_PushServer, stallMax time.Duration) *push {
	p := &push{stream: stream, stallMax: stallMax, messages: make(chan pushMessage), ended: make(chan struct{})}
	go func() { // ends with the call: Recv then does
		for {
			message, err := stream.Recv()
			select {
			case p.messages <- pushMessage{message, err}:
			case <-p.ended:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return p
}

func (p *push) end() { close(p.ended) }

func (p *push) send(r *capsulev1.UpdateServicePushResponse) error {
	return p.stream.Send(r)
}

func (p *push) progress(u *capsulev1.UpdateProgress) {
	// A caller that is gone is seen at the next fetch.
	_ = p.send(&capsulev1.UpdateServicePushResponse{Part: &capsulev1.UpdateServicePushResponse_Progress{Progress: u}})
}

// receive gives the caller's next message. A caller that is there and sends
// nothing would keep others from pushing.
func (p *push) receive(ctx context.Context) (*capsulev1.UpdateServicePushRequest, error) {
	stall := time.NewTimer(p.stallMax)
	defer stall.Stop()
	select {
	case m := <-p.messages:
		if errors.Is(m.err, io.EOF) {
			return nil, fmt.Errorf("the push was broken off: its caller closed it before all was sent: %w", errdefs.ErrAborted)
		}
		return m.UpdateServicePushRequest, m.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-stall.C:
		return nil, fmt.Errorf("the push was broken off: its caller sent nothing for %v: %w", p.stallMax, errdefs.ErrAborted)
	}
}

// fetch is an update.Fetch.
func (p *push) fetch(ctx context.Context, ranges []update.Range, got func(offset int64, data []byte) error) error {
	owed := newOwed(ranges)
	if err := p.ask(owed); err != nil {
		return err
	}
	for len(owed) > 0 {
		message, err := p.receive(ctx)
		if err != nil {
			return err
		}
		data := message.GetData()
		if data == nil {
			return fmt.Errorf("a push has its offer once, then data: %w", errdefs.ErrInvalidArgument)
		}
		if owed, err = owed.take(data.GetOffset(), int64(len(data.GetData()))); err != nil {
			return err
		}
		if err := got(data.GetOffset(), data.GetData()); err != nil {
			return err
		}
	}
	return nil
}

func (p *push) ask(o owed) error {
	for part := range slices.Chunk(o, updateRangesMax) {
		need := &capsulev1.UpdateNeed{Ranges: make([]*capsulev1.UpdateRange, len(part))}
		for i, r := range part {
			need.Ranges[i] = &capsulev1.UpdateRange{Offset: r.Offset, Length: r.Length}
		}
		if err := p.send(&capsulev1.UpdateServicePushResponse{Part: &capsulev1.UpdateServicePushResponse_Need{Need: need}}); err != nil {
			return err
		}
	}
	return nil
}

// owed is what a caller was asked for and has not sent, in order.
type owed []update.Range

func newOwed(ranges []update.Range) owed {
	o := slices.DeleteFunc(slices.Clone(ranges), func(r update.Range) bool { return r.Length <= 0 })
	slices.SortFunc(o, func(a, b update.Range) int { return cmp.Compare(a.Offset, b.Offset) })
	return o
}

// take strikes off what came. What was not asked for is refused, so that none of
// it is written twice.
func (o owed) take(offset, length int64) (owed, error) {
	if length == 0 || length > updateDataMax {
		return o, fmt.Errorf("%d bytes in one message of a push, want 1 to %d: %w", length, updateDataMax, errdefs.ErrInvalidArgument)
	}
	i, found := slices.BinarySearchFunc(o, offset, func(r update.Range, offset int64) int { return cmp.Compare(r.Offset, offset) })
	if !found {
		i--
	}
	if i < 0 || offset-o[i].Offset > o[i].Length-length {
		return o, fmt.Errorf("%d bytes at %d of the bundle were sent and not asked for: %w", length, offset, errdefs.ErrInvalidArgument)
	}
	before, end := offset-o[i].Offset, o[i].Offset+o[i].Length
	after := update.Range{Offset: offset + length, Length: end - offset - length}
	switch {
	case before == 0 && after.Length > 0:
		o[i] = after
	case before > 0:
		o[i].Length = before
		if after.Length > 0 {
			o = slices.Insert(o, i+1, after)
		}
	case i == 0: // as all callers of ours do: in order, so that nothing is moved
		o = o[1:]
	default:
		o = slices.Delete(o, i, i+1)
	}
	return o, nil
}
