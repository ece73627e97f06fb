package microvm

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	guestv1 "capsule/api/capsule/guest/v1"
)

const (
	redialPause = 100 * time.Millisecond
	redialMax   = time.Second
	windowBytes = 256 << 10 // not yet taken of one stream
	headersMax  = 16 << 10
)

// agent is the capsule's end of the line to a guest.
type agent struct {
	guestv1.GuestServiceClient
	conn *grpc.ClientConn
}

// newAgent makes one; dial is called when something is asked and there is no
// connection. One attempt may take connectMax until the guest has greeted.
func newAgent(dial func(context.Context) (net.Conn, error), connectMax time.Duration) (*agent, error) {
	conn, err := grpc.NewClient("passthrough:///guest",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the wire is a wall's hole of our own
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageMax)),
		grpc.WithMaxHeaderListSize(headersMax),
		grpc.WithInitialWindowSize(windowBytes), grpc.WithInitialConnWindowSize(windowBytes),
		grpc.WithIdleTimeout(0), grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: redialPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redialMax},
			MinConnectTimeout: connectMax,
		}))
	if err != nil {
		return nil, err
	}
	return &agent{guestv1.NewGuestServiceClient(conn), conn}, nil
}

func (a *agent) close() { _ = a.conn.Close() }

// state asks in which phase the guest is, waiting for it to answer at all.
func (a *agent) state(ctx context.Context, limit time.Duration) (guestv1.StateResponse_Phase, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := a.State(limited, &guestv1.StateRequest{}, grpc.WaitForReady(true))
	return r.GetPhase(), refused(ctx, err)
}
