package server

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/uplink"
)

func machineNetwork(address string) *capsulev1.Object {
	return &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: manifest.KindCapsule, Name: manifest.CapsuleName},
		Kind: &capsulev1.Object_Capsule{Capsule: &capsulev1.Capsule{Spec: &capsulev1.CapsuleSpec{
			Network: &capsulev1.CapsuleNetwork{Links: []*capsulev1.LinkSpec{{Link: "eth7", Addresses: []string{address}}}},
		}}},
	}
}

// withTrials is a box whose links nobody makes; the test says how they stand.
func withTrials(t *testing.T) (*box, *uplink.Trials) {
	t.Helper()
	var trials *uplink.Trials
	b := newBox(t, func(o *Options) {
		var err error
		if trials, err = uplink.OpenTrials(t.Context(), uplink.TrialOptions{Store: o.Store, Select: func(netlink.Link) bool { return false }, Log: slog.New(slog.DiscardHandler)}); err != nil {
			t.Fatal(err)
		}
		o.Network = trials
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- trials.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b, trials
}

// A changed network is tried, which the answer says, and confirmed by an admin alone.
func TestConfirmNetwork(t *testing.T) {
	b, trials := withTrials(t)
	admin := capsulev1.NewObjectServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN))
	request := &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{machineNetwork("192.0.2.5/24")}, DryRun: true}
	dry, err := admin.Apply(limit(t), request)
	if err != nil {
		t.Fatal(err)
	}
	if r := dry.GetResults()[0]; r.GetObject().GetCapsule().GetStatus().GetTrial() != nil || !strings.Contains(strings.Join(r.GetWarnings(), "\n"), `link "eth7" is not there`) {
		t.Errorf("dry run: %v", r)
	}
	request.DryRun = false
	applied, err := admin.Apply(limit(t), request)
	if err != nil {
		t.Fatal(err)
	}
	meta, trial := applied.GetResults()[0].GetObject().GetMeta(), applied.GetResults()[0].GetObject().GetCapsule().GetStatus().GetTrial()
	if trial.GetGeneration() != meta.GetGeneration() || trial.GetUntil() == nil {
		t.Fatalf("tried: %v", trial)
	}
	_, err = admin.Apply(limit(t), &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{machineNetwork("192.0.2.6/24")}})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "the network is busy") {
		t.Errorf("a second change: %v", err)
	}

	confirm := func(role capsulev1.Role, proof []byte) (*capsulev1.ConfirmNetworkResponse, error) {
		return capsulev1.NewCapsuleServiceClient(b.dial(t, role)).ConfirmNetwork(limit(t), &capsulev1.ConfirmNetworkRequest{Generation: meta.GetGeneration(), Proof: proof})
	}
	if _, err := confirm(capsulev1.Role_ROLE_OPERATOR, nil); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an operator: %v", err)
	}
	if _, err := confirm(capsulev1.Role_ROLE_ADMIN, nil); status.Code(err) != codes.Unavailable {
		t.Errorf("before it is made: %v", err)
	}
	var answer *capsulev1.ConfirmNetworkResponse
	ctx := limit(t)
	for number := uint64(1); len(answer.GetProof()) == 0 && ctx.Err() == nil; number++ {
		trials.Heard(uplink.State{Number: number%3 + 1}) // once the settings are told
		answer, err = confirm(capsulev1.Role_ROLE_ADMIN, nil)
	}
	if err != nil || answer.GetConfirmed() {
		t.Fatalf("the first call: %v, %v", answer, err)
	}
	for range 2 { // the first answer may be lost
		done, err := confirm(capsulev1.Role_ROLE_ADMIN, answer.GetProof())
		if err != nil || !done.GetConfirmed() {
			t.Errorf("the second call: %v, %v", done, err)
		}
	}
}

func TestConfirmNothing(t *testing.T) {
	b := newBox(t, nil)
	_, err := capsulev1.NewCapsuleServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN)).ConfirmNetwork(limit(t), &capsulev1.ConfirmNetworkRequest{Generation: 1})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("%v", err)
	}
}
