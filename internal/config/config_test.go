package config

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2/transport"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/logs"
	"capsule/internal/secret"
	"capsule/internal/slot"
	"capsule/internal/store"
	"capsule/internal/uplink"
	"capsule/internal/volume"
)

// parts are those of a machine, which write down what they were told.
type parts struct {
	name    string
	logs    logs.Limits
	pool    volume.Limits
	asked   int // for the time
	kernels [][]string
	kernel  slot.Arguments
	network uplink.TrialStatus
	broken  error // of Rename
	settled bool
}

func (p *parts) Follow() {}

func (p *parts) Status() (uplink.TrialStatus, error) { return p.network, nil }

func (p *parts) rename(name string) (string, error) {
	if name == "" {
		name = "capsule-a3f2"
	}
	p.name = name
	return name, p.broken
}

func open(t *testing.T) *store.Store {
	t.Helper()
	st, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

// secretBook keeps secrets on a machine without a TPM.
func secretBook(t *testing.T, st *store.Store) *secret.Book {
	t.Helper()
	return secret.Open(st, filepath.Join(t.TempDir(), "secret.keys"), func() (transport.TPMCloser, error) { return nil, errors.New("no TPM in tests") })
}

func newConfig(t *testing.T) (*Config, *parts) {
	t.Helper()
	p := &parts{}
	st := open(t)
	return New(Options{
		Store: st, Registries: NewRegistries(st, secretBook(t, st)), Settled: func() bool { return p.settled }, Rename: p.rename, Network: p, Clock: func() { p.asked++ },
		Logs: func(l logs.Limits) error { p.logs = l; return nil },
		Pool: func(l volume.Limits) { p.pool = l },
		Kernel: func(args []string) (slot.Arguments, error) {
			p.kernels = append(p.kernels, args)
			return p.kernel, nil
		},
		Log: slog.New(slog.DiscardHandler),
	}), p
}

func declare(t *testing.T, c *Config, spec *v1.CapsuleSpec) {
	t.Helper()
	obj := &v1.Object{Meta: &v1.Meta{Kind: manifest.KindCapsule, Name: manifest.CapsuleName}, Kind: &v1.Object_Capsule{Capsule: &v1.Capsule{Spec: spec}}}
	if _, err := c.opts.Store.Apply(t.Context(), []*v1.Object{obj}, false, nil); err != nil {
		t.Fatal(err)
	}
}

func status(t *testing.T, c *Config) *v1.CapsuleStatus {
	t.Helper()
	if err := c.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	obj, err := c.opts.Store.Get(manifest.KindCapsule, manifest.CapsuleName)
	if err != nil {
		t.Fatal(err)
	}
	return obj.GetCapsule().GetStatus()
}

// At the first start there is an object, and all is as it comes.
func TestFirstStart(t *testing.T) {
	c, p := newConfig(t)
	want := &v1.CapsuleStatus{Generation: 1, Phase: v1.CapsulePhase_CAPSULE_PHASE_READY, Hostname: "capsule-a3f2"}
	if diff := cmp.Diff(want, status(t, c), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if p.logs != logs.DefaultLimits || p.pool != volume.DefaultLimits || p.asked != 0 {
		t.Errorf("%+v", p)
	}
	obj, err := c.opts.Store.Get(manifest.KindCapsule, manifest.CapsuleName)
	if err != nil || !cmp.Equal(obj.GetCapsule().GetSpec(), &v1.CapsuleSpec{}, protocmp.Transform()) {
		t.Errorf("%v, %v", obj, err)
	}
}

// Each part is told what was declared, and only what it has to do anew.
func TestDeclared(t *testing.T) {
	c, p := newConfig(t)
	spec := &v1.CapsuleSpec{
		Hostname: "attic", Ntp: []string{"ntp.lan"}, KernelArguments: []string{"nomodeset"},
		Network: &v1.CapsuleNetwork{Dns: []string{"192.168.1.1"}},
		Logs:    &v1.LogLimits{MaxSize: 1 << 20}, Pool: &v1.PoolLimits{Limit: 85},
	}
	declare(t, c, spec)
	want := &v1.CapsuleStatus{
		Generation: 1, Phase: v1.CapsulePhase_CAPSULE_PHASE_RESTART, Hostname: "attic", Network: spec.GetNetwork(), Ntp: spec.GetNtp(),
		Restart: []string{"kernelArguments"}, Message: "kernelArguments waits for a restart: capsulectl capsule reboot",
	}
	for range 2 {
		if diff := cmp.Diff(want, status(t, c), protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	if p.name != "attic" || p.logs != (logs.Limits{FileBytes: 1 << 20, Files: 4}) || p.pool != (volume.Limits{Warn: 80, Critical: 85, Overcommit: 1000}) {
		t.Errorf("%+v", p)
	}
	if p.asked != 1 || len(p.kernels) != 1 {
		t.Errorf("the time servers were asked anew %d times, the boot partition was looked at %d times", p.asked, len(p.kernels))
	}
	// After the restart.
	p.kernel.Running = spec.GetKernelArguments()
	c.kernel = nil
	if s := status(t, c); s.GetPhase() != v1.CapsulePhase_CAPSULE_PHASE_READY || len(s.GetRestart()) > 0 || !cmp.Equal(s.GetKernelArguments(), spec.GetKernelArguments()) {
		t.Errorf("%v", s)
	}
	// And with nothing declared.
	declare(t, c, &v1.CapsuleSpec{})
	if s := status(t, c); s.GetHostname() != "capsule-a3f2" || !cmp.Equal(s.GetRestart(), []string{"kernelArguments"}) {
		t.Errorf("%v", s)
	}
	if p.asked != 2 || len(p.kernels) != 3 || len(p.kernels[2]) != 0 {
		t.Errorf("asked %d times; arguments %q", p.asked, p.kernels)
	}
}

// What can't be brought into force is told, once, and keeps nothing else from it.
func TestProblems(t *testing.T) {
	c, p := newConfig(t)
	p.broken = errors.New("set host name \"attic\": no")
	p.kernel.Failed = true
	p.network = uplink.TrialStatus{Problems: []string{"link \"enp9s0\" is not there"}}
	declare(t, c, &v1.CapsuleSpec{Hostname: "attic", KernelArguments: []string{"nosmt"}, Pool: &v1.PoolLimits{Overcommit: 200}})
	for range 2 {
		s := status(t, c)
		if s.GetPhase() != v1.CapsulePhase_CAPSULE_PHASE_FAILED || len(s.GetRestart()) > 0 {
			t.Errorf("%v", s)
		}
		for _, says := range []string{"set host name", "enp9s0", `did not start with the kernel arguments "nosmt"`} {
			if !strings.Contains(s.GetMessage(), says) {
				t.Errorf("%q lacks %q", s.GetMessage(), says)
			}
		}
	}
	if p.pool.Overcommit != 200 {
		t.Errorf("the pool has %+v", p.pool)
	}
	page, err := c.opts.Store.Events(0, 100, nil)
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	for _, e := range page.Events {
		if e.GetType() == "config-failed" {
			told++
		}
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
	p.broken, p.kernel.Failed, p.network, c.kernel = nil, false, uplink.TrialStatus{}, nil
	if s := status(t, c); s.GetPhase() != v1.CapsulePhase_CAPSULE_PHASE_RESTART {
		t.Errorf("%v", s)
	}
}

// A network that could not be read is told of, and kept from nobody.
func TestNoNetwork(t *testing.T) {
	c, _ := newConfig(t)
	c.opts.Network = nil
	if s := status(t, c); s.GetPhase() != v1.CapsulePhase_CAPSULE_PHASE_FAILED || !strings.Contains(s.GetMessage(), "could not be read") {
		t.Errorf("%v", s)
	}
}

func TestTrial(t *testing.T) {
	c, p := newConfig(t)
	until := timestamppb.New(time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC))
	p.network.Trial = &v1.NetworkTrial{Generation: 1, Until: until}
	declare(t, c, &v1.CapsuleSpec{})
	s := status(t, c)
	if s.GetPhase() != v1.CapsulePhase_CAPSULE_PHASE_TRYING || s.GetTrial().GetGeneration() != 1 || !strings.Contains(s.GetMessage(), "goes back at 12:00:00 UTC") {
		t.Errorf("%v", s)
	}
	p.network = uplink.TrialStatus{Reverted: "it was not confirmed within 1m0s"}
	if s := status(t, c); s.GetPhase() != v1.CapsulePhase_CAPSULE_PHASE_READY || s.GetTrial() != nil || !strings.Contains(s.GetMessage(), "was taken back: it was not confirmed") {
		t.Errorf("%v", s)
	}
}

// The loop follows what is declared.
func TestRun(t *testing.T) {
	c, _ := newConfig(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	changes, err := c.opts.Store.Watch(t.Context(), manifest.KindCapsule, manifest.CapsuleName)
	if err != nil {
		t.Fatal(err)
	}
	until := func(name string) {
		t.Helper()
		for change := range changes {
			if change.Object.GetCapsule().GetStatus().GetHostname() == name {
				return
			}
		}
		t.Fatalf("it never was %q", name)
	}
	until("capsule-a3f2")
	declare(t, c, &v1.CapsuleSpec{Hostname: "attic"})
	until("attic")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Without a store, or an object, nothing is declared.
func TestSpec(t *testing.T) {
	for name, st := range map[string]*store.Store{"no store": nil, "no object": open(t)} {
		if spec, err := Spec(st); err != nil || !cmp.Equal(spec, &v1.CapsuleSpec{}, protocmp.Transform()) {
			t.Errorf("%s: %v, %v", name, spec, err)
		}
	}
	st := open(t)
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if spec, err := Spec(st); err == nil || errdefs.IsNotFound(err) || spec == nil {
		t.Errorf("a closed store: %v, %v", spec, err)
	}
}
