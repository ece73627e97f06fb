// Package config makes the machine be as its one object of kind Capsule declares: its
// name, network, time servers, the bounds of logs and of the pool, the arguments of
// its kernel. Each of these belongs to a package of its own; this one brings them what
// was declared, and writes into the object's status what is in force.
//
//	apply ──► object ──► pass: rename, network, logs, pool, kernel ──► status
//	             ▲
//	             └── made empty at the first start, with what was set before
//	                 there was such an object
//
// What can't be brought into force never ends the daemon and never keeps the rest from
// it: the status says what and why, and the pass is made again.
package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/await"
	"capsule/internal/logs"
	"capsule/internal/reconcile"
	"capsule/internal/slot"
	"capsule/internal/store"
	"capsule/internal/uplink"
	"capsule/internal/volume"
)

const (
	key        = "capsule"
	watchAgain = time.Second // until a lost watch is taken up again
)

// Options are the parts of the machine that are configured.
type Options struct {
	Store      *store.Store
	Registries *Registries
	// Settled tells that this version of Capsule is not gone back from by itself.
	Settled func() bool
	// Rename gives the machine its name, "" the one that it was made with, and says
	// which it has now.
	Rename func(name string) (string, error)
	// Network tries what is declared of the network, and tells how it stands; nil when
	// that could not be read.
	Network Network
	// Clock has the time servers asked: they are others.
	Clock func()
	// Logs keeps the bounds of logs.
	Logs func(logs.Limits) error
	// Pool takes on the limits of the pool.
	Pool func(volume.Limits)
	// Kernel has the kernel start with arguments from the next restart on.
	Kernel func(args []string) (slot.Arguments, error)
	Log    *slog.Logger // default slog.Default()
}

// Network is how the machine is connected; uplink.Trials is one.
type Network interface {
	Follow()
	Status() (uplink.TrialStatus, error)
}

// Config brings what is declared of the machine into force.
type Config struct {
	opts  Options
	log   *slog.Logger
	queue *reconcile.Queue

	// Of the pass before, which is the only one that has them.
	ntp    []string
	args   []string
	kernel *slot.Arguments // nil while it is to be looked at

	cleared bool // of what was set before there was a configuration
}

// New makes one; Run makes it work.
func New(o Options) *Config {
	c := &Config{opts: o, log: o.Log}
	if c.log == nil {
		c.log = slog.Default()
	}
	c.queue = reconcile.New(reconcile.Options{Keys: func(context.Context) []string { return []string{key} }},
		func(ctx context.Context, _ string) (time.Duration, error) { return 0, c.pass(ctx) })
	return c
}

// Wake has the machine looked at soon.
func (c *Config) Wake() { c.queue.Wake(key) }

// Run works until ctx ends.
func (c *Config) Run(ctx context.Context) error {
	go c.watch(ctx)
	c.queue.Run(ctx)
	return nil
}

// watch wakes the loop when something else was declared.
func (c *Config) watch(ctx context.Context) {
	seen := uint64(0)
	for ctx.Err() == nil {
		changes, err := c.opts.Store.Watch(ctx, manifest.KindCapsule, manifest.CapsuleName)
		if err != nil {
			c.log.Error("watch the configuration", "error", err)
			return // the full pass goes on
		}
		for change := range changes {
			if now := change.Object.GetMeta().GetGeneration(); now != seen {
				seen = now
				c.Wake()
			}
		}
		_ = await.Pause(ctx, watchAgain)
	}
}

// Spec is what is declared of the machine in a store, empty when that is nothing or
// there is no store.
func Spec(st *store.Store) (*v1.CapsuleSpec, error) {
	if st == nil {
		return &v1.CapsuleSpec{}, nil
	}
	obj, err := st.Get(manifest.KindCapsule, manifest.CapsuleName)
	if err != nil && !errdefs.IsNotFound(err) {
		return &v1.CapsuleSpec{}, err
	}
	if spec := obj.GetCapsule().GetSpec(); spec != nil {
		return spec, nil
	}
	return &v1.CapsuleSpec{}, nil
}

// LogLimits are the bounds of logs that are declared.
func LogLimits(s *v1.CapsuleSpec) logs.Limits {
	l := logs.DefaultLimits
	if size := s.GetLogs().GetMaxSize(); size != 0 {
		l.FileBytes = size
	}
	if files := s.GetLogs().GetMaxFiles(); files != 0 {
		l.Files = int(files)
	}
	return l
}

// PoolLimits are the limits of the pool that are declared.
func PoolLimits(s *v1.CapsuleSpec) volume.Limits {
	warn, limit, overcommit := manifest.PoolLimits(s.GetPool())
	return volume.Limits{Warn: int64(warn), Critical: int64(limit), Overcommit: overcommit}
}

// pass brings all that is declared into force, and writes down how it stands.
func (c *Config) pass(ctx context.Context) error {
	obj, err := c.object(ctx)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	spec := obj.GetCapsule().GetSpec()
	s := &v1.CapsuleStatus{Generation: obj.GetMeta().GetGeneration(), Ntp: spec.GetNtp()}
	var problems []string
	note := func(err error) {
		if err != nil {
			c.log.Error("configure the machine", "error", err)
			problems = append(problems, err.Error())
		}
	}
	s.Hostname, err = c.opts.Rename(spec.GetHostname())
	note(err)
	trouble, err := c.network(spec, s)
	note(err)
	problems = append(problems, trouble...)
	if !slices.Equal(c.ntp, spec.GetNtp()) {
		c.ntp = spec.GetNtp()
		c.opts.Clock()
	}
	note(c.opts.Logs(LogLimits(spec)))
	c.opts.Pool(PoolLimits(spec))
	if refused, err := c.arguments(spec.GetKernelArguments(), s); err != nil {
		note(err)
	} else if refused != "" {
		problems = append(problems, refused)
	}
	s.Phase, s.Message = judge(s, problems)
	var happened []store.Happening
	if old := obj.GetCapsule().GetStatus(); s.Phase == v1.CapsulePhase_CAPSULE_PHASE_FAILED && old.GetMessage() != s.Message {
		happened = append(happened, store.Happening{Type: "config-failed", Text: s.Message})
	}
	return c.opts.Store.PutCapsuleStatus(obj.GetMeta().GetUid(), s, happened...)
}

// object gives what is declared. At the first start it is made, of what was set before.
func (c *Config) object(ctx context.Context) (*v1.Object, error) {
	if err := c.inherit(ctx); err != nil {
		return nil, err
	}
	return c.opts.Store.Get(manifest.KindCapsule, manifest.CapsuleName)
}

// network tells how the network stands.
func (c *Config) network(spec *v1.CapsuleSpec, s *v1.CapsuleStatus) (problems []string, err error) {
	if c.opts.Network == nil {
		return nil, errors.New("what is declared of the network could not be read; addresses come by DHCP")
	}
	c.opts.Network.Follow()
	now, err := c.opts.Network.Status()
	if err != nil {
		return nil, err
	}
	s.Trial, s.Reverted = now.Trial, now.Reverted
	s.Network = proto.CloneOf(spec.GetNetwork())
	return now.Problems, nil
}

// arguments tells how the kernel was started, and what comes with the next restart.
// The boot partition is only looked at where something else is declared.
func (c *Config) arguments(args []string, s *v1.CapsuleStatus) (refused string, err error) {
	if c.kernel == nil || !slices.Equal(c.args, args) {
		c.kernel = nil
		now, err := c.opts.Kernel(args)
		if err != nil {
			return "", err
		}
		c.kernel, c.args = &now, args
	}
	s.KernelArguments = c.kernel.Running
	if c.kernel.Failed {
		return fmt.Sprintf("the machine did not start with the kernel arguments %s, and runs without them: change or remove them", quoted(args)), nil
	}
	if !slices.Equal(c.kernel.Running, args) {
		s.Restart = append(s.Restart, "kernelArguments")
	}
	return "", nil
}

func quoted(list []string) string { return "\"" + strings.Join(list, " ") + "\"" }

// judge is the state and the sentence of what was found.
func judge(s *v1.CapsuleStatus, problems []string) (v1.CapsulePhase, string) {
	var says []string
	phase := v1.CapsulePhase_CAPSULE_PHASE_READY
	if len(s.GetRestart()) > 0 {
		phase = v1.CapsulePhase_CAPSULE_PHASE_RESTART
		says = append(says, strings.Join(s.GetRestart(), ", ")+" waits for a restart: capsulectl capsule reboot")
	}
	if t := s.GetTrial(); t != nil {
		phase = v1.CapsulePhase_CAPSULE_PHASE_TRYING
		says = append(says, fmt.Sprintf("the network is tried, and goes back at %s unless it is confirmed", t.GetUntil().AsTime().UTC().Format("15:04:05 MST")))
	}
	if why := s.GetReverted(); why != "" {
		says = append(says, "the last change of the network was taken back: "+why)
	}
	if len(problems) > 0 {
		phase = v1.CapsulePhase_CAPSULE_PHASE_FAILED
		says = append(problems, says...)
	}
	return phase, strings.Join(says, "; ")
}
