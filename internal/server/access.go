package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/claim"
	"capsule/internal/identity"
	"capsule/internal/quota"
)

// access is who may enter.
type access struct {
	capsulev1.UnimplementedAccessServiceServer
	Options
	door     *door
	refusals *refusals
	renewals *quota.Quota // by operator
}

// Renewals of one operator: so many at once, for answers that got lost, then one
// after each of these. Each is a change of the list, on /perm and on the ESP.
const (
	renewalsBurst = 3
	renewalEvery  = time.Minute
)

// Claim is the one method that needs no certificate: its proof is bound to the
// connection, so whoever relays it has nothing.
func (s *access) Claim(ctx context.Context, req *capsulev1.ClaimRequest) (*capsulev1.ClaimResponse, error) {
	from, state, err := connection(ctx)
	if err != nil {
		return nil, err
	}
	export, err := claim.Export(state)
	if err != nil {
		return nil, err
	}
	cert, proof, err := s.Identity.Claim(export, req.GetCsr(), req.GetProof())
	if err != nil {
		s.refusals.log(s.Log, byClaimer, "claim refused", "from", from, "reason", err)
		return nil, err
	}
	s.door.claimed()
	about(ctx, "operator/"+cert.Subject.CommonName)
	s.Log.Info("claimed", "operator", cert.Subject.CommonName, "key", identity.KeyFingerprint(cert), "from", from)
	return &capsulev1.ClaimResponse{Ca: s.Identity.CA().Raw, Certificate: cert.Raw, Proof: proof, Name: s.Machine.Info().GetName()}, nil
}

func (s *access) ListOperators(ctx context.Context, _ *capsulev1.ListOperatorsRequest) (*capsulev1.ListOperatorsResponse, error) {
	caller, err := certificate(ctx)
	if err != nil {
		return nil, err
	}
	resp := &capsulev1.ListOperatorsResponse{}
	for _, o := range s.Identity.List() {
		m := operatorMessage(o)
		m.Self = o.Key == identity.KeyID(caller)
		resp.Operators = append(resp.Operators, m)
	}
	return resp, nil
}

func (s *access) GrantOperator(ctx context.Context, req *capsulev1.GrantOperatorRequest) (*capsulev1.GrantOperatorResponse, error) {
	caller, err := certificate(ctx)
	if err != nil {
		return nil, err
	}
	r, err := identity.ParseRequest(req.GetCsr())
	if err != nil {
		return nil, err
	}
	var ttl time.Duration
	if d := req.GetTtl(); d != nil {
		if err := d.CheckValid(); err != nil || d.AsDuration() == 0 {
			return nil, fmt.Errorf("ttl %v: want a time above zero: %w", d, errdefs.ErrInvalidArgument)
		}
		ttl = d.AsDuration()
	}
	cert, err := s.Identity.Grant(caller, req.GetName(), req.GetRole(), r, ttl)
	if err != nil {
		return nil, err
	}
	about(ctx, "operator/"+cert.Subject.CommonName)
	s.Log.Info("operator granted", "operator", cert.Subject.CommonName, "role", identity.RoleName(req.GetRole()), "key", identity.KeyFingerprint(cert), "by", caller.Subject.CommonName)
	return &capsulev1.GrantOperatorResponse{Ca: s.Identity.CA().Raw, Certificate: cert.Raw}, nil
}

func (s *access) RevokeOperator(ctx context.Context, req *capsulev1.RevokeOperatorRequest) (*capsulev1.RevokeOperatorResponse, error) {
	caller, err := certificate(ctx)
	if err != nil {
		return nil, err
	}
	removed, err := s.Identity.Revoke(caller, req.GetName(), req.GetKeyFingerprint())
	if err != nil {
		return nil, err
	}
	resp := &capsulev1.RevokeOperatorResponse{}
	for _, o := range removed {
		s.Log.Info("operator revoked", "operator", o.Name, "role", o.Role, "key", identity.Grouped(o.Key), "by", caller.Subject.CommonName)
		resp.Operators = append(resp.Operators, operatorMessage(o))
	}
	return resp, nil
}

func (s *access) RenewCertificate(ctx context.Context, req *capsulev1.RenewCertificateRequest) (*capsulev1.RenewCertificateResponse, error) {
	caller, err := certificate(ctx)
	if err != nil {
		return nil, err
	}
	r, err := identity.ParseRequest(req.GetCsr())
	if err != nil {
		return nil, err
	}
	if name := caller.Subject.CommonName; !s.renewals.Allow(name) {
		return nil, fmt.Errorf("certificates of %q were just renewed, which is done once in %v: wait that long: %w", name, renewalEvery, errdefs.ErrResourceExhausted)
	}
	cert, err := s.Identity.Renew(caller, r)
	if err != nil {
		return nil, err
	}
	about(ctx, "operator/"+cert.Subject.CommonName)
	s.Log.Info("certificate renewed", "operator", cert.Subject.CommonName, "key", identity.KeyFingerprint(cert), "not_after", cert.NotAfter)
	return &capsulev1.RenewCertificateResponse{Certificate: cert.Raw}, nil
}

func operatorMessage(o identity.Operator) *capsulev1.Operator {
	m := &capsulev1.Operator{
		Name: o.Name, Role: identity.RoleNamed(o.Role), KeyFingerprint: identity.Grouped(o.Key),
		GrantedBy: o.GrantedBy, GrantedAt: timestamppb.New(o.GrantedAt), NotAfter: timestamppb.New(o.NotAfter),
	}
	if !o.LastSeen.IsZero() {
		m.LastSeen = timestamppb.New(o.LastSeen)
	}
	return m
}

// connection tells where a call comes from and over what.
func connection(ctx context.Context) (from string, state tls.ConnectionState, err error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", state, fmt.Errorf("no peer: %w", errdefs.ErrUnauthenticated)
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return p.Addr.String(), state, fmt.Errorf("no TLS: %w", errdefs.ErrUnauthenticated)
	}
	return p.Addr.String(), info.State, nil
}

// certificate is the caller's, which passed the handshake.
func certificate(ctx context.Context) (*x509.Certificate, error) {
	_, state, err := connection(ctx)
	if err != nil {
		return nil, err
	}
	if len(state.PeerCertificates) == 0 {
		return nil, fmt.Errorf("no certificate: only a claim needs none: %w", errdefs.ErrUnauthenticated)
	}
	return state.PeerCertificates[0], nil
}
