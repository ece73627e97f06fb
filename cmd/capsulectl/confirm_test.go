//go:build linux

package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

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
		"not reached":   {grpcstatus.Error(codes.Unavailable, "connection error"), false},
		"being made":    {grpcstatus.Error(codes.Unavailable, "the change of the network is being made"), false},
		"late":          {context.DeadlineExceeded, false},
		"no proof":      {nil, false},
		"taken back":    {grpcstatus.Error(codes.FailedPrecondition, "taken back"), true},
		"no admin":      {grpcstatus.Error(codes.PermissionDenied, "no"), true},
		"seen":          {&failure{exitFailed, errors.New("taken back"), ""}, true},
		"an older one":  {grpcstatus.Error(codes.Unimplemented, "no such method"), true},
		"seen, wrapped": {errors.Join(&failure{exitFailed, errors.New("taken back"), ""}), true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := settled(test.err); got != test.want {
				t.Errorf("%v: %t", test.err, got)
			}
		})
	}
}
