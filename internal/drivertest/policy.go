package drivertest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/image"
	"capsule/internal/logs"
	"capsule/internal/network"
	"capsule/internal/store"
	"capsule/internal/volume"
	"capsule/internal/workload"
)

// policyKind names the driver that is tested, whatever its own kind is.
const policyKind = "Container"

// policy has the real loop keep workloads by their restart policies.
func (s *suite) policy(t *testing.T) {
	st, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	p := &policies{suite: s, store: st}
	p.loop = workload.NewLoop(workload.LoopOptions{
		Store: st, Images: stored{s.base}, Network: surroundings{s},
		Volumes: volume.New(volume.Options{Store: st}), // none is mounted
		Drivers: map[string]workload.Driver{policyKind: s.driver},
		LogDir:  func(name string) string { return filepath.Join(s.LogRoot, name) },
		Mark:    logs.Mark, DropLog: func(string) error { return nil },
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.loop.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	for _, tc := range []struct {
		name, restart string
		code          int32
		again         bool
	}{
		{"always", "always", 0, true},
		{"after a failure", "on-failure", 3, true},
		{"not after success", "on-failure", 0, false},
		{"never", "never", 3, false},
	} {
		t.Run(tc.name, slow(func(t *testing.T) {
			p.keep(t, "policy-"+strings.ReplaceAll(tc.name, " ", "-"), tc.restart, tc.code, tc.again)
		}))
	}
	t.Run("LIFE-05 replace", p.replace)
}

type policies struct {
	*suite
	store *store.Store
	loop  *workload.Loop
}

// keep declares a workload, waits for what the policy makes of its end, and
// deletes it.
func (p *policies) keep(t *testing.T, name, restart string, code int32, again bool) {
	p.declare(t, name, &v1.WorkloadSpec{
		Image: p.base.Name, Command: []string{"/payload"}, Args: []string{"exit", fmt.Sprint(code)}, Restart: restart, Network: "none",
	})
	p.until(t, name, func(status *v1.WorkloadStatus) bool {
		if again {
			return status.GetRestarts() > 0
		}
		return status.GetPhase() == v1.Phase_PHASE_EXITED && status.GetExitCode() == code && status.GetRestarts() == 0
	})
	if err := p.store.Delete("", name); err != nil {
		t.Fatal(err)
	}
	p.loop.Wake(name)
	p.until(t, name, nil)
}

func (p *policies) declare(t *testing.T, name string, spec *v1.WorkloadSpec) {
	t.Helper()
	obj := &v1.Object{Meta: &v1.Meta{Kind: policyKind, Name: name}, Kind: &v1.Object_Workload{Workload: &v1.Workload{Spec: spec}}}
	if _, err := p.store.Apply(t.Context(), []*v1.Object{obj}, false, nil); err != nil {
		t.Fatal(err)
	}
	p.loop.Wake(name)
}

// until waits for a status, or with nil for the object to be gone.
func (p *policies) until(t *testing.T, name string, fn func(*v1.WorkloadStatus) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	changes, err := p.store.Watch(ctx, "", name)
	if err != nil {
		t.Fatal(err)
	}
	var status *v1.WorkloadStatus
	for {
		obj, err := p.store.Get("", name)
		switch {
		case errdefs.IsNotFound(err):
			if fn != nil {
				t.Fatalf("%s is gone", name)
			}
			return
		case err != nil:
			t.Fatal(err)
		case fn != nil && fn(obj.GetWorkload().GetStatus()):
			return
		}
		status = obj.GetWorkload().GetStatus()
		select {
		case <-changes:
		case <-time.After(time.Second): // a slow reader's changes are dropped
		case <-ctx.Done():
			t.Fatalf("%s stays %v", name, status)
		}
	}
}

// stored is the one image that there is.
type stored struct{ image.Image }

func (s stored) Get(context.Context, string) (image.Image, error) { return s.Image, nil }
func (s stored) Pull(context.Context, string, func(done, total int64)) (image.Image, error) {
	return s.Image, nil
}

// surroundings give workloads of a loop the network of the suite's instances.
type surroundings struct{ *suite }

func (n surroundings) AttachNone(name string) (network.Attachment, error) {
	w := n.Network(name)
	return network.Attachment{NetNS: w.NetNS, ResolvConf: w.ResolvConf, Hosts: w.Hosts}, nil
}
func (n surroundings) Attach(_ context.Context, name string, _ bool) (network.Attachment, error) {
	return n.AttachNone(name)
}
func (surroundings) HostAttachment() network.Attachment                 { return network.Attachment{} }
func (surroundings) Detach(context.Context, string) error               { return nil }
func (surroundings) SetStopped(string, bool) error                      { return nil }
func (surroundings) Publish(context.Context, []network.Published) error { return nil }
func (surroundings) Sync(context.Context, []string) error               { return nil }
