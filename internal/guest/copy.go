package guest

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	guestv1 "capsule/api/capsule/guest/v1"
	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/filecopy"
)

// CopyTo unpacks a tar stream where the payload sees the path. Nothing in the
// image is run for it.
func (a *agent) CopyTo(stream guestv1.GuestService_CopyToServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	target := first.GetTarget()
	if target.GetPath() == "" {
		return fmt.Errorf("copy must begin with its target: %w", errdefs.ErrInvalidArgument)
	}
	tar, feed := io.Pipe()
	defer tar.Close()
	result := &capsulev1.CopyToResponse{}
	go guarded("copy", func() { _ = feed.CloseWithError(receive(stream, feed)) })
	err = a.copying(stream.Context(), feed, func(root *filecopy.Root) (err error) {
		result.Files, result.Bytes, err = filecopy.Unpack(root, target.GetPath(), target.GetSource(), tar)
		return err
	})
	if err != nil {
		return err
	}
	return stream.SendAndClose(result)
}

// receive writes what the caller sends, until its end or one of our side.
func receive(stream guestv1.GuestService_CopyToServer, tar io.Writer) error {
	for {
		msg, err := stream.Recv()
		if err == nil && msg.GetTarget() != nil {
			err = fmt.Errorf("a copy has one target: %w", errdefs.ErrInvalidArgument)
		}
		if err == nil {
			_, err = tar.Write(msg.GetData())
		}
		if err != nil {
			return err // io.EOF is the caller's end: who breaks off gives another error
		}
	}
}

// CopyFrom sends a path as the payload sees it as a tar stream.
func (a *agent) CopyFrom(req *capsulev1.CopyFromRequest, stream guestv1.GuestService_CopyFromServer) error {
	if req.GetPath() == "" {
		return fmt.Errorf("copy: no path: %w", errdefs.ErrInvalidArgument)
	}
	take, tar := io.Pipe()
	defer take.Close()
	go guarded("copy", func() {
		_ = tar.CloseWithError(a.copying(stream.Context(), tar, func(root *filecopy.Root) error {
			return filecopy.Pack(root, req.GetPath(), tar)
		}))
	})
	buf := make([]byte, copyMax)
	for {
		n, err := take.Read(buf)
		if n > 0 {
			if err := stream.Send(&capsulev1.CopyFromResponse{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// copying gives the payload's root to work. When the payload ends, or the caller
// leaves, the pipe that work waits for is cut.
func (a *agent) copying(ctx context.Context, pipe *io.PipeWriter, work func(*filecopy.Root) error) error {
	p, inside, leave, err := a.visit(ctx)
	if err != nil {
		return err
	}
	defer leave()
	stop := context.AfterFunc(inside, func() {
		err := ctx.Err()
		if err == nil {
			err = errEnded
		}
		_ = pipe.CloseWithError(err)
	})
	defer stop()
	root, err := p.root()
	if err != nil {
		return err
	}
	defer root.Close()
	return work(root.Root)
}
