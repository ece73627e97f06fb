//go:build linux

package main

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
)

func networkOf(addresses ...string) *capsulev1.CapsuleNetwork {
	if len(addresses) == 0 {
		return nil
	}
	return &capsulev1.CapsuleNetwork{Links: []*capsulev1.LinkSpec{{Addresses: addresses}}}
}

// A changed network is confirmed by what the change brought, and by nothing that was
// there before.
func TestWays(t *testing.T) {
	const host = "192.0.2.5:50000"
	for name, test := range map[string]struct {
		host, at      string
		before, after *capsulev1.CapsuleNetwork
		want          []string
	}{
		"DHCP to an address":         {host, "", nil, networkOf("192.0.2.6/24"), []string{"192.0.2.6:50000"}},
		"one more":                   {host, "", networkOf("192.0.2.5/24"), networkOf("192.0.2.5/24", "2001:db8::6/64"), []string{"[2001:db8::6]:50000"}},
		"several":                    {host, "", nil, networkOf("192.0.2.6/24", "2001:db8::6/64"), []string{"192.0.2.6:50000", "[2001:db8::6]:50000"}},
		"another length of a prefix": {host, "", networkOf("192.0.2.5/24"), networkOf("192.0.2.5/25"), []string{"192.0.2.5:50000"}},
		"other DNS servers":          {host, "", networkOf("192.0.2.5/24"), networkOf("192.0.2.5/24"), nil},
		"back to DHCP":               {host, "", networkOf("192.0.2.5/24"), nil, nil},
		"another port":               {"192.0.2.5:50001", "", nil, networkOf("192.0.2.6/24"), []string{"192.0.2.6:50001"}},
		"a port that is passed on":   {"127.0.0.1:41234", "", nil, networkOf("10.0.2.16/24"), []string{"127.0.0.1:41234"}},
		"where it is asked for":      {host, "attic.example:1234", nil, networkOf("192.0.2.6/24"), []string{"attic.example:1234"}},
		"an address alone":           {host, "192.0.2.9", nil, networkOf("192.0.2.6/24"), []string{"192.0.2.9:50000"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, ways(test.host, test.at, test.before, test.after)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestConfirmAt(t *testing.T) {
	for name, test := range map[string]struct {
		at   string
		app  *app
		want string
	}{
		"none":             {"", &app{capsule: "attic,kitchen"}, ""},
		"an address":       {"192.0.2.9", &app{capsule: "attic"}, ""},
		"a word":           {"attic", &app{capsule: "attic"}, "neither an address nor HOST:PORT"},
		"several capsules": {"192.0.2.9", &app{capsule: "attic,kitchen"}, "several are meant"},
	} {
		t.Run(name, func(t *testing.T) {
			err := ApplyOptions{ConfirmAt: test.at}.checkConfirmAt(test.app)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// What is tried again, and what ends it.
func TestSettled(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want bool
	}{
		"not reached":  {grpcstatus.Error(codes.Unavailable, "connection error"), false},
		"being made":   {grpcstatus.Error(codes.Unavailable, "the change of the network is being made"), false},
		"late":         {context.DeadlineExceeded, false},
		"no proof":     {nil, false},
		"taken back":   {grpcstatus.Error(codes.FailedPrecondition, "taken back"), true},
		"no admin":     {grpcstatus.Error(codes.PermissionDenied, "no"), true},
		"an older one": {grpcstatus.Error(codes.Unimplemented, "no such method"), true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := settled(test.err); got != test.want {
				t.Errorf("%v: %t", test.err, got)
			}
		})
	}
}

// It goes back by our clock a minute from now, unless it was tried already.
func TestUntil(t *testing.T) {
	for name, test := range map[string]struct {
		outcome capsulev1.Outcome
		in      time.Duration // by the capsule's clock
		want    time.Duration
	}{
		"begun now":                {capsulev1.Outcome_OUTCOME_CHANGED, time.Minute, time.Minute},
		"begun now, clock is slow": {capsulev1.Outcome_OUTCOME_CHANGED, time.Second, time.Minute},
		"begun before":             {capsulev1.Outcome_OUTCOME_UNCHANGED, 20 * time.Second, 20 * time.Second},
		"clock is in 1970":         {capsulev1.Outcome_OUTCOME_UNCHANGED, -50 * 365 * 24 * time.Hour, time.Minute},
		"clock is ahead":           {capsulev1.Outcome_OUTCOME_UNCHANGED, time.Hour, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &capsulev1.ApplyResult{Outcome: test.outcome, Object: &capsulev1.Object{Kind: &capsulev1.Object_Capsule{Capsule: &capsulev1.Capsule{
					Status: &capsulev1.CapsuleStatus{Trial: &capsulev1.NetworkTrial{Until: timestamppb.New(time.Now().Add(test.in))}},
				}}}}
				if got := time.Until(until(r)); got != test.want {
					t.Errorf("in %v, want %v", got, test.want)
				}
			})
		})
	}
}
