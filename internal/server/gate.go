package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/identity"
)

// gate is passed by every call: who calls, may they, and what became of it.
type gate struct {
	log   *slog.Logger
	mode  func() (capsulev1.Mode, string)
	roles map[string]capsulev1.Role // by full method name; set before serving
	id    *identity.Identity
	// refusals are more than a log can bear.
	refusals *refusals
	// version is in the header of each answer, also of a refusal.
	version metadata.MD
}

// methodRoles reads the role of every registered method from its descriptor.
// Reflection is no service of ours: it takes a reader.
func methodRoles(services map[string]grpc.ServiceInfo) (map[string]capsulev1.Role, error) {
	roles := map[string]capsulev1.Role{}
	for name := range services {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			return nil, fmt.Errorf("describe service %s: %w", name, err)
		}
		service, ok := d.(protoreflect.ServiceDescriptor)
		if !ok {
			return nil, fmt.Errorf("%s is no service", name)
		}
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			role, _ := proto.GetExtension(method.Options(), capsulev1.E_Role).(capsulev1.Role)
			if service.ParentFile().Package().Parent() == "grpc.reflection" {
				role = capsulev1.Role_ROLE_READER
			}
			if role == capsulev1.Role_ROLE_UNSPECIFIED {
				return nil, fmt.Errorf("method %s names no role", method.FullName())
			}
			roles["/"+name+"/"+string(method.Name())] = role
		}
	}
	return roles, nil
}

// changes tells whether the methods of a role may change something. Nobody's is the
// claim, which asks for its own proof and tells of itself.
func changes(needs capsulev1.Role) bool {
	return needs > capsulev1.Role_ROLE_READER && needs != capsulev1.Role_ROLE_NOBODY
}

// answered is the key of the call's own context, which ends once its answer is
// given to the connection.
type answered struct{}

func (g *gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, answered{}, ctx), callLimit)
	defer cancel()
	if err := grpc.SetHeader(ctx, g.version); err != nil {
		return nil, err
	}
	err = g.pass(ctx, info.FullMethod, func(ctx context.Context) error {
		resp, err = handler(ctx, req)
		return err
	})
	return resp, err
}

func (g *gate) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := s.SetHeader(g.version); err != nil {
		return err
	}
	return g.pass(s.Context(), info.FullMethod, func(ctx context.Context) error {
		return handler(srv, &cutStream{ServerStream: s, ctx: ctx, owing: owing[info.FullMethod]})
	})
}

// stallMax is how long the capsule waits for the next message of a caller that owes
// some. One that is there and sends nothing would hold what others wait for.
const stallMax = 5 * time.Minute

// owing are the streams whose callers owe all that is waited for. A shell may be
// silent for days; a push of an update is waited for by itself.
var owing = map[string]bool{
	capsulev1.BackupService_Backup_FullMethodName:       true,
	capsulev1.BackupService_FillVolume_FullMethodName:   true,
	capsulev1.BackupService_StageRestore_FullMethodName: true,
	capsulev1.ImageService_Push_FullMethodName:          true,
	capsulev1.VolumeService_Import_FullMethodName:       true,
	capsulev1.WorkloadService_CopyTo_FullMethodName:     true,
}

// cutStream ends with its context, which also ends when its operator is revoked:
// nothing more is sent or taken then, and nobody waits.
type cutStream struct {
	grpc.ServerStream
	ctx   context.Context //nolint:containedctx // grpc's own form
	owing bool
	over  error // nothing is received any more
}

func (s *cutStream) Context() context.Context { return s.ctx }

func (s *cutStream) SendMsg(m any) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	return s.ServerStream.SendMsg(m)
}

// RecvMsg leaves a message that does not come to the end of the stream, which is the
// handler's end: two must not wait for one at once.
func (s *cutStream) RecvMsg(m any) error {
	if s.over != nil {
		return s.over
	}
	var stalled <-chan time.Time
	if s.owing {
		timer := time.NewTimer(stallMax)
		defer timer.Stop()
		stalled = timer.C
	}
	got := make(chan error, 1)
	go func() { got <- s.ServerStream.RecvMsg(m) }()
	select {
	case err := <-got:
		if err != nil {
			return err
		}
		return context.Cause(s.ctx)
	case <-s.ctx.Done():
		s.over = context.Cause(s.ctx)
	case <-stalled:
		s.over = fmt.Errorf("the call was broken off: its caller sent nothing for %v: %w", stallMax, errdefs.ErrAborted)
	}
	return s.over
}

// pass lets a call through, or not, and answers with a code. A panic is that
// call's error.
func (g *gate) pass(ctx context.Context, method string, call func(context.Context) error) (err error) {
	who := nobody
	defer func() {
		if p := recover(); p != nil {
			g.log.Error("call panicked", "method", method, "operator", who, "panic", p, "stack", string(debug.Stack()))
			err = statusOf(errPanic)
			return
		}
		if unclassified(err) {
			g.log.Error("call failed", "method", method, "operator", who, "error", err)
		}
		err = statusOf(err)
	}()
	who, err = g.authorise(ctx, method)
	if err != nil {
		g.refuse(ctx, method, who, err)
		return err
	}
	if changes(g.roles[method]) {
		g.log.Info("call", "method", method, "operator", who)
	}
	return g.whileAllowed(ctx, method, call)
}

// nobody is who has no certificate.
const nobody = "nobody"

// refuse logs who was denied what, and why.
func (g *gate) refuse(ctx context.Context, method, who string, err error) {
	from, _, _ := connection(ctx)
	by := who
	if who == nobody {
		by = byStranger
	}
	g.refusals.log(g.log, by, "call refused", "method", method, "operator", who, "from", from, "error", err)
}

var errRevoked = fmt.Errorf("the key of this call was revoked: %w", errdefs.ErrUnauthenticated)

// whileAllowed ends a call under way when its operator is revoked.
func (g *gate) whileAllowed(ctx context.Context, method string, call func(context.Context) error) error {
	cert, err := certificate(ctx)
	if err != nil { // nobody's
		letIn(ctx)
		return call(ctx)
	}
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	release := g.id.WhenRevoked(cert, func() { cut(errRevoked) })
	defer release()
	// Revoked between the check and now.
	if _, err := g.admit(method, cert); err != nil {
		return err
	}
	letIn(ctx)
	err = call(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errRevoked) {
		return errRevoked
	}
	return err
}

// admit tells the role that a method is called with. Renewing is open to an admin
// whose certificate has expired, and nothing else is.
func (g *gate) admit(method string, cert *x509.Certificate) (capsulev1.Role, error) {
	if method == capsulev1.AccessService_RenewCertificate_FullMethodName {
		return g.id.AdmitToRenew(cert)
	}
	return g.id.Admit(cert)
}

func (g *gate) authorise(ctx context.Context, method string) (who string, err error) {
	needs, known := g.roles[method]
	has, who := capsulev1.Role_ROLE_UNSPECIFIED, nobody
	cert, err := certificate(ctx)
	if err == nil {
		who = cert.Subject.CommonName
		has, err = g.admit(method, cert)
	}
	switch {
	case !known:
		return who, errors.Join(err, fmt.Errorf("method %s: %w", method, errdefs.ErrNotImplemented))
	case needs == capsulev1.Role_ROLE_NOBODY:
		// The method asks for its own proof.
	case err != nil:
		return who, err
	case has < needs:
		return who, fmt.Errorf("%s needs the role %q, and the certificate of %q has the role %q: %w",
			method, identity.RoleName(needs), who, identity.RoleName(has), errdefs.ErrPermissionDenied)
	}
	mode, reason := g.mode()
	return who, suits(method, needs, mode, reason)
}
