package server

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
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
	// version is in the header of each answer, also of a refusal.
	version metadata.MD
}

// recoverable methods change the machine and yet work in recovery mode.
var recoverable = map[string]bool{
	capsulev1.CapsuleService_Reboot_FullMethodName:         true,
	capsulev1.CapsuleService_Shutdown_FullMethodName:       true,
	capsulev1.CapsuleService_RestartService_FullMethodName: true,
	capsulev1.UpdateService_Rollback_FullMethodName:        true,
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

// answered is the key of the call's own context, which ends once its answer is
// given to the connection.
type answered struct{}

func (g *gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, answered{}, ctx), callLimit)
	defer cancel()
	if err := grpc.SetHeader(ctx, g.version); err != nil {
		return nil, err
	}
	err = g.pass(ctx, info.FullMethod, func() error {
		resp, err = handler(ctx, req)
		return err
	})
	return resp, err
}

func (g *gate) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := s.SetHeader(g.version); err != nil {
		return err
	}
	return g.pass(s.Context(), info.FullMethod, func() error { return handler(srv, s) })
}

// pass lets a call through, or not, and answers with a code. A panic is that
// call's error.
func (g *gate) pass(ctx context.Context, method string, call func() error) (err error) {
	who := "nobody"
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
		g.log.Warn("call refused", "method", method, "operator", who, "error", err)
		return err
	}
	if g.roles[method] > capsulev1.Role_ROLE_READER {
		g.log.Info("call", "method", method, "operator", who)
	}
	return call()
}

func (g *gate) authorise(ctx context.Context, method string) (who string, err error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "nobody", fmt.Errorf("no peer: %w", errdefs.ErrUnauthenticated)
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return "nobody", fmt.Errorf("no certificate: %w", errdefs.ErrUnauthenticated)
	}
	cert := info.State.PeerCertificates[0]
	who = cert.Subject.CommonName
	has, err := identity.Role(cert)
	if err != nil {
		return who, err
	}
	needs, ok := g.roles[method]
	if !ok {
		return who, fmt.Errorf("method %s: %w", method, errdefs.ErrNotImplemented)
	}
	if has < needs {
		return who, fmt.Errorf("%s needs the role %q, and the certificate of %q has the role %q: %w",
			method, identity.RoleName(needs), who, identity.RoleName(has), errdefs.ErrPermissionDenied)
	}
	mode, reason := g.mode()
	if mode == capsulev1.Mode_MODE_RECOVERY && needs > capsulev1.Role_ROLE_READER && !recoverable[method] {
		return who, fmt.Errorf("the capsule is in recovery mode and changes nothing (%s); \"capsulectl capsule update rollback\" goes back to the system before: %w", reason, errdefs.ErrFailedPrecondition)
	}
	return who, nil
}
