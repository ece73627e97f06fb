package main

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"capsule/internal/version"
)

// release is what of a semantic version tells whether two programs fit: "v1.4.2",
// "1.4.2" and "v1.4.2-5-g1a2b3c4" are all 1.4.
type release struct{ major, minor int }

var semver = regexp.MustCompile(`^v?(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})([-+][0-9A-Za-z.+-]+)?$`)

// unstamped is the version of a program that was built without one.
const unstamped = "0.0.0-dev"

func releaseOf(v string) (r release, ok bool) {
	m := semver.FindStringSubmatch(v)
	if m == nil || strings.HasPrefix(v, unstamped) {
		return r, false
	}
	r.major, _ = strconv.Atoi(m[1]) //nolint:errcheck // nine digits at most
	r.minor, _ = strconv.Atoi(m[2]) //nolint:errcheck // as above
	return r, true
}

// skew is what there is to say about this program's version and the capsule's; ""
// when they fit, and when either can't be compared.
func skew(mine, capsules string) string {
	a, okA := releaseOf(mine)
	b, okB := releaseOf(capsules)
	switch apart := a.minor - b.minor; {
	case !okA || !okB || a == b:
		return ""
	case a.major == b.major && (apart == 1 || apart == -1):
		return fmt.Sprintf("capsulectl is %s and the capsule %s: one minor version apart, which works; update the older one", mine, capsules)
	}
	return fmt.Sprintf("capsulectl is %s and the capsule %s: more than one minor version apart, which is not supported; commands may fail or leave something out. Use a capsulectl of %d.%d",
		mine, capsules, b.major, b.minor)
}

// heed warns, once, when the answer of a capsule names a version that does not fit.
func (a *app) heed(header metadata.MD) {
	of := header.Get(version.Header)
	if len(of) == 0 { // an answer of something else, or of none
		return
	}
	a.answered.Store(true)
	a.compared.Do(func() {
		if text := skew(version.Version, of[0]); text != "" {
			a.ui.warn(text)
		}
	})
}

// heeding are the options of a connection whose answers are compared.
func (a *app) heeding() []grpc.DialOption {
	unary := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		var header metadata.MD
		err := invoke(ctx, method, req, reply, conn, append(opts, grpc.Header(&header))...)
		a.heed(header)
		return err
	}
	stream := func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		s, err := open(ctx, desc, conn, method, opts...)
		return &heededStream{ClientStream: s, app: a}, err
	}
	return []grpc.DialOption{grpc.WithUnaryInterceptor(unary), grpc.WithStreamInterceptor(stream)}
}

type heededStream struct {
	grpc.ClientStream
	app *app
}

// RecvMsg has the header beside the first message.
func (s *heededStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if header, headerErr := s.Header(); headerErr == nil {
		s.app.heed(header)
	}
	return err
}
