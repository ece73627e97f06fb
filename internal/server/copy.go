package server

import (
	"bytes"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
)

func (s *workloads) CopyTo(stream capsulev1.WorkloadService_CopyToServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	target := first.GetTarget()
	if target.GetPath() == "" {
		return fmt.Errorf("copy must begin with its target: %w", errdefs.ErrInvalidArgument)
	}
	id, driver, err := s.running(stream.Context(), target.GetName())
	if err != nil {
		return err
	}
	tar := &chunks{next: func() ([]byte, error) {
		msg, err := stream.Recv()
		if err == nil && msg.GetTarget() != nil {
			err = fmt.Errorf("a copy has one target: %w", errdefs.ErrInvalidArgument)
		}
		return msg.GetData(), err
	}}
	files, n, err := driver.CopyTo(stream.Context(), id, target.GetPath(), target.GetSource(), tar)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&capsulev1.CopyToResponse{Files: files, Bytes: n})
}

func (s *workloads) CopyFrom(req *capsulev1.CopyFromRequest, stream capsulev1.WorkloadService_CopyFromServer) error {
	if req.GetPath() == "" {
		return fmt.Errorf("copy from %q: no path: %w", req.GetName(), errdefs.ErrInvalidArgument)
	}
	id, driver, err := s.running(stream.Context(), req.GetName())
	if err != nil {
		return err
	}
	return driver.CopyFrom(stream.Context(), id, req.GetPath(), copyWriter{stream})
}

type copyWriter struct {
	stream capsulev1.WorkloadService_CopyFromServer
}

func (w copyWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		part := p[done:min(done+chunkMax, len(p))]
		if err := w.stream.Send(&capsulev1.CopyFromResponse{Data: part}); err != nil {
			return done, err
		}
		done += len(part)
	}
	return len(p), nil
}

// chunks reads a stream of messages as bytes. It ends with the client's side;
// a client that breaks off is an error, never an end.
type chunks struct {
	next func() ([]byte, error)
	rest bytes.Reader
}

func (c *chunks) Read(p []byte) (int, error) {
	for c.rest.Len() == 0 {
		data, err := c.next()
		if err != nil {
			return 0, err
		}
		c.rest.Reset(data)
	}
	return c.rest.Read(p)
}

var _ io.Reader = (*chunks)(nil)
