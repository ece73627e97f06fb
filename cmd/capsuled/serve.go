package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"capsule/internal/audit"
	"capsule/internal/await"
	"capsule/internal/clock"
	"capsule/internal/config"
	"capsule/internal/container"
	"capsule/internal/identity"
	"capsule/internal/image"
	"capsule/internal/installer"
	"capsule/internal/instance"
	"capsule/internal/logs"
	"capsule/internal/lvm"
	"capsule/internal/microvm"
	"capsule/internal/network"
	"capsule/internal/qemu"
	"capsule/internal/secret"
	"capsule/internal/server"
	"capsule/internal/state"
	"capsule/internal/storage"
	"capsule/internal/store"
	"capsule/internal/update"
	"capsule/internal/uplink"
	"capsule/internal/volume"
	"capsule/internal/workload"
)

const (
	apiPort          = 50000
	storePath        = "/perm/state.db"
	auditDir         = "/perm/audit"
	ramAuditDir      = "/run/capsule/audit"
	containerdSocket = "unix:///run/containerd/containerd.sock"
	containerdSpace  = "capsule"
	runtimeName      = "io.containerd.runc.v2"
	messageMax       = 16 << 20         // bytes, of containerd
	stopMax          = 55 * time.Second // workloads at shutdown; process 1 gives 60 s
	goodbyeMax       = 2 * time.Second  // of mDNS
	answersMax       = 2 * time.Second  // calls that are under way at the end
	restMax          = 10 * time.Second // the lvm command that is under way then; a kill would leave volumes suspended
	againMin         = 200 * time.Millisecond
	againMax         = 10 * time.Second
)

// daemon is the serve role: it brings the parts together. The API comes first
// and waits for nothing; all else joins when it can.
type daemon struct {
	machine    *machine
	store      *store.Store // a copy, or nil, in recovery mode
	client     *containerd.Client
	conn       *grpc.ClientConn
	images     *image.Store
	volumes    *volume.Manager  // nil in recovery mode
	secrets    *secret.Book     // nil in recovery mode
	kept       chan struct{}    // closed once volumes are usable
	disks      *storage.Manager // nil in recovery mode
	assembled  chan struct{}    // closed once the disks are known
	disksRest  chan struct{}    // closed once nothing is done with disks any more
	loop       atomic.Pointer[workload.Loop]
	looping    chan struct{} // closed once the loop is there
	updates    *update.Manager
	installer  *installer.Installer // nil but on a stick
	stage      *state.Stage         // as installer
	network    atomic.Pointer[network.Network]
	trials     *uplink.Trials // of the machine's own network; nil when nothing is declared
	audit      *audit.Log     // nil where none can be kept
	serves     server.Options // what the API is of
	found      *discovery
	config     *config.Config // nil in recovery mode, as are registries
	registries *config.Registries
	timing     chan struct{} // the time servers are others
	filtered   chan struct{} // closed once making the network was tried

	announced atomic.Bool // process 1 knows that all works
	silent    atomic.Bool // the API has not answered the last call of our own
}

// serve runs until ctx ends, then stops all workloads: only the machine's end
// asks it to. A crash, or a kill, leaves every workload running.
func serve(ctx context.Context) error {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stdout, nil)))
	m := newMachine()
	d := &daemon{machine: m, filtered: make(chan struct{}), looping: make(chan struct{}), kept: make(chan struct{}), assembled: make(chan struct{}), disksRest: make(chan struct{}), timing: make(chan struct{}, 1)}
	d.takeBackup()
	d.openStore()
	if d.store != nil {
		defer d.store.Close()
	}
	d.declared()
	d.openTrials(ctx)
	if err := d.connect(); err != nil {
		return err
	}
	srv, listener, pulse, err := d.api()
	if err != nil {
		return err
	}
	m.farewell = func() { finish(srv); d.closeAudit() }
	// Parts live until the workloads are stopped, beyond ctx.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	failed := make(chan error, 3) // of the API and the loop
	for _, l := range []net.Listener{listener, pulse.listener} {
		go func() {
			if l == nil {
				return
			}
			if err := srv.Serve(l); err != nil {
				failed <- fmt.Errorf("serve the API: %w", err)
			}
		}()
	}
	m.update(func(s *shown) { s.ready = true })
	go m.watchClaim(life)
	go m.parts.Run(life) //nolint:errcheck // ends with life
	go d.watchConsole(life, &d.serves)
	go d.beat(life, pulse)
	if m.installs {
		go m.watchDisks(life, d.installer)
	}
	if m.normal() {
		d.noteStart()
		go d.watchMachine(life)
		go d.watchUpdate(life)
		go d.keepVolumes(life)
		go d.keepDisks(life)
		go d.keepConfigured(life)
		go d.openSecrets(life)
		go d.watchTwin(life)
		go func() {
			if err := d.workloads(life); err != nil {
				failed <- fmt.Errorf("run workloads: %w", err)
			}
		}()
		go d.announce(life)
	} else {
		close(d.filtered)
		close(d.disksRest)
	}
	if d.trials != nil {
		go repeat(life, "network of the machine", d.trials.Run)
	}
	go d.uplinks(life)
	silenced := make(chan struct{})
	go func() { defer close(silenced); repeat(life, "discovery", d.found.Run) }()
	go repeat(life, "clock", func(ctx context.Context) error {
		return clock.Run(ctx, clock.Options{Servers: d.timeServers, Again: d.timing, OnSync: func() { m.update(func(*shown) {}) }, OnStep: d.noteStep})
	})
	select {
	case err := <-failed:
		return err // process 1 starts this role anew
	case <-ctx.Done():
	}
	d.note("going-down", "goes down in order: its workloads are stopped")
	d.stopWorkloads(life)
	finish(srv)
	d.closeAudit()
	end()
	select {
	case <-silenced:
	case <-time.After(goodbyeMax):
	}
	d.restStorage(context.WithoutCancel(ctx))
	return nil
}

// restStorage ends the care of volumes, which process 1 unmounts then.
func (d *daemon) restStorage(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, restMax)
	defer cancel()
	if _, err := await.Done(ctx, d.disksRest, restMax); err != nil {
		slog.Error("end the care of disks", "error", err)
	}
	if err := lvm.Rest(ctx); err != nil {
		slog.Error("end the care of volumes", "error", err)
	}
}

// openAudit goes on with the record of who changed what. Where /perm must not be
// written, or is that of no capsule yet, it is in memory until the next boot. Without
// one the capsule works all the same: this machine is of no use to whoever can't get
// in.
func (d *daemon) openAudit() {
	var l *audit.Log
	var err error
	if d.machine.normal() {
		l, err = audit.Open(auditDir, slog.Default())
	} else {
		l, err = audit.OpenBeside(auditDir, ramAuditDir, slog.Default())
	}
	if err != nil {
		slog.Error("no audit log is kept", "error", err)
		return
	}
	d.audit = l
}

func (d *daemon) closeAudit() {
	if d.audit == nil {
		return
	}
	if err := d.audit.Close(); err != nil {
		slog.Error("close the audit log", "error", err)
	}
}

// openStore opens what was declared. What can't be read is recovery mode, with
// the checked copy to look at.
func (d *daemon) openStore() {
	if d.machine.installs { // nothing is declared on a stick
		return
	}
	if d.machine.normal() {
		st, err := store.Open(storePath)
		if err == nil {
			d.store = st
			return
		}
		d.machine.recover(err.Error())
	}
	st, err := store.OpenCopy(storePath)
	if err != nil {
		slog.Error("open the copy of the state", "error", err)
		return
	}
	d.store = st
}

// openTrials begins with the network that was confirmed last, also in recovery mode:
// the machine must be reached where it was. What can't be read leaves it with DHCP.
func (d *daemon) openTrials(ctx context.Context) {
	if d.store == nil {
		return
	}
	var err error
	if d.trials, err = uplink.OpenTrials(ctx, uplink.TrialOptions{Store: d.store, OnChange: d.reconfigured, Log: slog.Default()}); err != nil {
		slog.Error("read the network that is declared; addresses come by DHCP", "error", err)
	}
}

// connect prepares for containerd without waiting for it: calls fail until it
// listens, and again while it is restarted.
func (d *daemon) connect() (err error) {
	d.conn, err = grpc.NewClient(containerdSocket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageMax), grpc.MaxCallSendMsgSize(messageMax)),
		// The client names its namespace only on connections that it makes itself.
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(inNamespace(ctx), method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(inNamespace(ctx), desc, cc, method, opts...)
		}))
	if err != nil {
		return fmt.Errorf("prepare for containerd: %w", err)
	}
	d.client, err = containerd.NewWithConn(d.conn, containerd.WithDefaultNamespace(containerdSpace), containerd.WithDefaultRuntime(runtimeName))
	if err != nil {
		return fmt.Errorf("prepare for containerd: %w", err)
	}
	return nil
}

func inNamespace(ctx context.Context) context.Context {
	if _, ok := namespaces.Namespace(ctx); ok {
		return ctx
	}
	return namespaces.WithNamespace(ctx, containerdSpace)
}

// api makes the server and takes its port.
func (d *daemon) api() (*grpc.Server, net.Listener, *pulse, error) {
	id, err := d.machine.identity()
	if err != nil {
		return nil, nil, nil, err
	}
	d.found = newDiscovery(d.machine, id)
	p, err := newPulse(selfSocket, id)
	if err != nil {
		return nil, nil, nil, err
	}
	srv, err := d.newServer(id)
	if err != nil {
		return nil, nil, nil, err
	}
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(apiPort))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("listen for the API: %w", err)
	}
	return srv, netutil.LimitListener(listener, server.ConnectionsMax), p, nil
}

// newServer makes the API of all parts that there are in this mode.
func (d *daemon) newServer(id *identity.Identity) (*grpc.Server, error) {
	tlsConfig, err := id.ServerTLS(d.machine.called())
	if err != nil {
		return nil, err
	}
	d.openAudit()
	o := server.Options{TLS: tlsConfig, Identity: id, Store: d.store, Machine: d.machine, Network: d.trials, Kinds: kinds(), Audit: d.audit, Log: slog.Default()}
	o.Debug = newDebug()
	o.Support = d.supportEntries()
	if d.machine.installs {
		d.installer = d.newInstaller(id)
		o.Installer, o.Stage = d.installer, d.stage
	} else {
		if d.updates, err = d.newUpdates(); err != nil {
			return nil, err
		}
		o.Updates = d.updates
	}
	if d.machine.normal() {
		d.secrets = secret.Open(d.store, secret.KeyFile, nil)
		o.Secrets = d.secrets
		d.registries = config.NewRegistries(d.store, d.secrets)
		d.images = image.Open(d.client, d.registries)
		d.volumes = volume.New(volume.Options{Store: d.store, Content: d.images, Freed: d.freed, Log: slog.Default()})
		d.configure()
		o.Backups = d.backups(id)
		o.Traffic, o.Room, o.MachineMemory = d.traffic, room, microvm.Memory
		o.LastPass = d.lastPass
		o.WorkloadLink = d.workloadLink
		if d.disks, err = d.newDisks(); err != nil {
			return nil, err
		}
		o.Disks = patientDisks{d.disks, d}
		o.Registries, o.Images, o.Runtime, o.Volumes = d.registries, patientImages{d.images, d}, patientRuntime{d}, patientVolumes{d.volumes, d}
	}
	d.serves = o
	return server.New(o)
}

// workloads makes the network, as often as it takes, then runs the loop.
func (d *daemon) workloads(ctx context.Context) error {
	var n *network.Network
	first := true
	repeat(ctx, "network", func(context.Context) (err error) {
		n, err = network.New(network.Options{Store: d.store.Bucket("network"), Hostname: d.machine.called(), Log: slog.Default()})
		if err == nil {
			d.network.Store(n)
			err = n.SetHostname(d.machine.called()) // it may have been renamed meanwhile
			d.upstreams(d.machine.uplink())
		}
		if first {
			first = false
			close(d.filtered)
		}
		return err
	})
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the end that was asked for is no failure
	}
	loop := workload.NewLoop(workload.LoopOptions{
		Store: d.store, Images: d.images, Network: n, Volumes: d.volumes, Secrets: d.secrets, LogDir: logs.Dir, Mark: logs.Mark, DropLog: logs.Remove,
		Drivers: d.drivers(ctx),
	})
	d.volumes.SetGuests(loop)
	d.loop.Store(loop)
	close(d.looping)
	return loop.Run(ctx)
}

// keepVolumes finishes or undoes what a former run left half done, as often as it
// takes, then makes volumes be as declared. Until then workloads that mount some
// wait, and others don't.
func (d *daemon) keepVolumes(ctx context.Context) {
	known := sync.OnceFunc(func() { close(d.assembled) })
	repeat(ctx, "volumes", func(ctx context.Context) error {
		if err := d.disks.Assemble(ctx); err != nil {
			slog.Error("find the disks of the pool", "error", err) // what lies on PERM is there
		}
		known()
		// What an lvm command did that went down with a former daemon.
		if err := lvm.Resume(ctx); err != nil {
			return err
		}
		if err := d.volumes.Recover(ctx); err != nil {
			return err
		}
		// Process 1 has done so at the boot, or is about to: but for what was half done.
		look, err := lvm.Activate(ctx)
		if look {
			slog.Error("some volumes can't be activated") // whoever mounts them is told why
		}
		return err
	})
	if ctx.Err() != nil {
		return
	}
	close(d.kept)
	d.freed("")
	repeat(ctx, "volumes", d.volumes.Run)
}

// openSecrets opens the machine's key, as often as it takes: what can't be started
// without it waits.
func (d *daemon) openSecrets(ctx context.Context) {
	repeat(ctx, "secrets", func(context.Context) error { return d.secrets.Unlock() })
	if loop := d.loop.Load(); loop != nil && ctx.Err() == nil {
		loop.SecretChanged("")
	}
}

// freed has the workloads looked at that wait for a volume, or for any when it is
// "". One that the loop does not know yet it looks at first anyhow.
func (d *daemon) freed(name string) {
	if loop := d.loop.Load(); loop != nil {
		loop.Freed(name)
	}
}

// kinds are those that have a driver here.
func kinds() []string {
	if !virtualization.possible() {
		return []string{instance.Container}
	}
	return []string{instance.Container, instance.MicroVM}
}

// drivers by kind.
func (d *daemon) drivers(ctx context.Context) map[string]workload.Driver {
	drivers := map[string]workload.Driver{instance.Container: container.New(d.client, container.Options{})}
	found := virtualization.find(ctx)
	if found == "" {
		return drivers
	}
	d.machine.update(func(s *shown) { s.virtualization = found })
	var o microvm.Options
	if reason, emulated := strings.CutPrefix(found, emulatedFor); emulated {
		o.Emulated, o.Nested = reason, qemu.Emulated()
	}
	drivers[instance.MicroVM] = microvm.New(d.client, o)
	return drivers
}

// uplinks connect to the world only once it was tried to filter what it sends.
func (d *daemon) uplinks(ctx context.Context) {
	select {
	case <-d.filtered:
	case <-ctx.Done():
		return
	}
	o := uplink.Options{Hostname: d.machine.called, Log: slog.Default(), OnChange: func(s uplink.State) {
		d.machine.setUplink(s)
		d.found.on(s)
		d.upstreams(s)
		if d.trials != nil {
			d.trials.Heard(s)
		}
	}}
	if d.trials != nil {
		o.Settings = d.trials.Settings
	}
	repeat(ctx, "uplink", func(ctx context.Context) error { return uplink.Run(ctx, o) })
}

// upstreams tells the workloads' DNS whom to ask, and the rules who is on the LAN.
func (d *daemon) upstreams(s uplink.State) {
	n := d.network.Load()
	if n == nil {
		return
	}
	var lan []netip.Prefix
	for _, l := range s.Links {
		lan = append(lan, l.Addresses...)
	}
	if err := errors.Join(n.SetUpstreams(append([]netip.Addr{}, s.DNS...)), n.SetDomain(s.Domain), n.SetLAN(lan)); err != nil {
		slog.Error("tell workloads of the uplinks", "error", err)
	}
	if text := n.Overlap(); text != "" {
		slog.Warn("network: " + text)
		if err := d.store.NoteChange(d.capsuleObject(), "overlap", text); err != nil {
			slog.Error("keep event", "error", err)
		}
	}
}

// lastPass is the loop's, once there is one.
func (d *daemon) lastPass() time.Duration {
	if loop := d.loop.Load(); loop != nil {
		return loop.LastPass()
	}
	return 0
}

// traffic of workloads, once there is a network of theirs.
func (d *daemon) traffic() (map[string]network.Traffic, error) {
	n := d.network.Load()
	if n == nil {
		return nil, nil
	}
	return n.Traffic()
}

// announce tells process 1 that all works, which makes this version the good one.
// It tries until it could: a version that works in the end must not be counted
// out for a containerd that was restarted meanwhile.
func (d *daemon) announce(ctx context.Context) { repeat(ctx, "readiness", d.tellReady) }

func (d *daemon) tellReady(ctx context.Context) error {
	d.conn.Connect()
	for state := d.conn.GetState(); state != connectivity.Ready; state = d.conn.GetState() {
		if !d.conn.WaitForStateChange(ctx, state) {
			return ctx.Err()
		}
		d.conn.Connect() // it may be idle again
	}
	if _, err := d.client.Version(ctx); err != nil {
		return fmt.Errorf("ask containerd: %w", err)
	}
	select {
	case <-d.filtered:
	case <-ctx.Done():
		return ctx.Err()
	}
	if d.network.Load() == nil {
		return errNoNetwork // not good: the boot counter goes on
	}
	if err := notify("READY=1"); err != nil {
		return err
	}
	d.announced.Store(true)
	return nil
}

var errNoNetwork = errors.New("the network of workloads is not made yet")

// stopWorkloads at the machine's end, without a change of what is wanted.
func (d *daemon) stopWorkloads(ctx context.Context) {
	loop := d.loop.Load()
	if loop == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stopMax)
	defer cancel()
	if err := loop.StopAll(ctx); err != nil {
		slog.Error("stop workloads", "error", err)
	}
}

// finish lets calls end, within bounds: a watch never does.
func finish(srv *grpc.Server) {
	done := make(chan struct{})
	go func() { srv.GracefulStop(); close(done) }()
	select {
	case <-done:
	case <-time.After(answersMax):
		srv.Stop()
		<-done
	}
}

// repeat runs a part again, less and less often, until it ends without error.
func repeat(ctx context.Context, what string, run func(context.Context) error) {
	for wait := againMin; ; wait = min(2*wait, againMax) {
		err := run(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		slog.Error(what+" failed; tried again", "error", err, "after", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

var _ server.Machine = (*machine)(nil)
