package server

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/token"
)

// tokens are for metrics only: no call of the API takes one.
type tokens struct {
	capsulev1.UnimplementedTokenServiceServer
	book *token.Book // nil without a store
}

func (s *tokens) Create(ctx context.Context, req *capsulev1.TokenServiceCreateRequest) (*capsulev1.TokenServiceCreateResponse, error) {
	if s.book == nil {
		return nil, errNoState
	}
	cert, err := certificate(ctx)
	if err != nil {
		return nil, err
	}
	t, secret, err := s.book.Create(req.GetName(), cert.Subject.CommonName)
	if err != nil {
		return nil, err
	}
	return &capsulev1.TokenServiceCreateResponse{Token: tokenMessage(t), Secret: secret}, nil
}

func (s *tokens) List(context.Context, *capsulev1.TokenServiceListRequest) (*capsulev1.TokenServiceListResponse, error) {
	if s.book == nil {
		return nil, errNoState
	}
	resp := &capsulev1.TokenServiceListResponse{}
	for _, t := range s.book.List() {
		resp.Tokens = append(resp.Tokens, tokenMessage(t))
	}
	return resp, nil
}

func (s *tokens) Revoke(_ context.Context, req *capsulev1.TokenServiceRevokeRequest) (*capsulev1.TokenServiceRevokeResponse, error) {
	if s.book == nil {
		return nil, errNoState
	}
	return &capsulev1.TokenServiceRevokeResponse{}, s.book.Revoke(req.GetName())
}

func tokenMessage(t token.Token) *capsulev1.Token {
	m := &capsulev1.Token{Name: t.Name, CreatedAt: timestamppb.New(t.CreatedAt), CreatedBy: t.CreatedBy}
	if !t.LastUsed.IsZero() {
		m.LastUsed = timestamppb.New(t.LastUsed)
	}
	return m
}
