package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	guestv1 "capsule/api/capsule/guest/v1"
	"capsule/internal/guest/channel"
	"capsule/internal/instance"
	"capsule/internal/jail"
	"capsule/internal/logs"
	"capsule/internal/process"
	"capsule/internal/qemu"
	"capsule/internal/workload"
)

// Start runs the instance's machine with a logger beside it.
func (d *Driver) Start(ctx context.Context, in workload.Instance) error {
	record := instance.RecordID(in.ID)
	defer d.records.Lock(record)()
	c, err := d.records.Get(ctx, in.ID)
	if err != nil {
		return err
	}
	runs, err := d.alreadyRuns(ctx, record)
	if err == nil && !runs {
		err = d.start(ctx, c, in)
	}
	if err != nil {
		return fmt.Errorf("start workload %q: %w", in.Name, err)
	}
	return nil
}

// alreadyRuns waits for a machine that ends, and asks one that runs whether it
// does what it should.
func (d *Driver) alreadyRuns(ctx context.Context, record string) (bool, error) {
	m, err := d.adopt(record)
	if m == nil || err != nil {
		return false, err
	}
	if !m.over() {
		phase, err := m.agent.state(ctx, d.pace.call)
		if err != nil && !m.over() {
			return false, fmt.Errorf("its machine (process %d) runs, but its agent does not answer; stop the workload: %w", m.qemu.PID, err)
		}
		if phase == guestv1.StateResponse_PHASE_RUNNING {
			return true, nil
		}
		if phase == guestv1.StateResponse_PHASE_READY {
			m.kill()
		}
	}
	return false, m.settled(ctx)
}

// launch is a start under way.
type launch struct {
	driver *Driver
	record string
	in     workload.Instance
	size   size
	facts  facts

	console *console
	files   jail.Files
	opened  []*os.File // of ours, to be closed once QEMU has them
	machine machine
	card    *card
	qemu    *jail.Process
	booted  bool // the agent answered
	vm      *vm
}

func (d *Driver) start(ctx context.Context, c containers.Container, in workload.Instance) error {
	l := &launch{driver: d, record: c.ID, in: in}
	err := l.run(ctx, c)
	if err == nil {
		return nil
	}
	words := l.undo(context.WithoutCancel(ctx))
	_ = logs.Mark(in.LogDir, "could not start")
	if words != "" {
		return &failure{cause: err, words: words}
	}
	return err
}

// failure is a start that the guest has something to say about.
type failure struct {
	cause error
	words string
}

func (f *failure) Error() string { return f.cause.Error() + f.words }
func (f *failure) Unwrap() error { return f.cause }

func (l *launch) run(ctx context.Context, c containers.Container) error {
	began := time.Now()
	if err := l.learn(c); err != nil {
		return err
	}
	err := l.gather(ctx)
	if err == nil {
		err = l.exec(ctx)
	}
	l.closeFiles() // of which QEMU has copies, if it runs: its end is seen by theirs
	if err != nil {
		return err
	}
	execed := time.Now()
	if err := l.boot(ctx); err != nil {
		return err
	}
	booted := time.Now()
	if err := l.tell(ctx); err != nil {
		return err
	}
	slog.Info("started workload", "name", l.in.Name, "generation", l.in.Generation, "pid", l.qemu.PID,
		"prepare", took(began, execed), "boot", took(execed, booted), "start", took(booted, time.Now()))
	return nil
}

// learn reads the record.
func (l *launch) learn(c containers.Container) error {
	number, err := strconv.Atoi(c.Labels[instance.LabelNumber])
	if err != nil || number < 1 || number > numberMax {
		return fmt.Errorf("its record has the number %q; remove the workload and declare it again: %w", c.Labels[instance.LabelNumber], errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(c.Spec.GetValue(), &l.size); err != nil {
		return fmt.Errorf("its record has no sizes; remove the workload and declare it again: %w", err)
	}
	l.facts = facts{
		ID: l.in.ID, Began: time.Now(), Number: number, LogDir: l.in.LogDir,
		ResolvConf: l.in.Network.ResolvConf, Hosts: l.in.Network.Hosts, NetNS: l.in.Network.NetNS,
	}
	return nil
}

// gather opens all that QEMU gets.
func (l *launch) gather(ctx context.Context) error {
	if err := l.driver.loadModules(); err != nil {
		return err
	}
	err := l.room()
	if err != nil {
		return err
	}
	if l.console, err = l.driver.openConsole(ctx, l.in.LogDir); err != nil {
		return err
	}
	l.facts.Logger = l.console.logger
	// Before there is anything that would have to be cleared away.
	if err := l.driver.keep(l.record, l.facts); err != nil {
		return err
	}
	if err := l.disks(ctx); err != nil {
		return err
	}
	if l.in.Network.NetNS != "" {
		if l.card, err = openCard(l.in.Network.NetNS); err != nil {
			return err
		}
	}
	return l.lines()
}

// room makes the run folder, with nothing in it from a machine before.
func (l *launch) room() error {
	dir := l.driver.runDir(l.record)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{factsFile, qmpFile, agentFile} {
		if err := os.Remove(l.driver.file(l.record, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// layers are the files of the image's layers, the lowest first.
func (d *Driver) layers(ctx context.Context, record string) ([]string, error) {
	mounts, err := d.records.Snapshots().Mounts(ctx, record)
	if err != nil {
		return nil, fmt.Errorf("find the image's layers: %w", err)
	}
	return layerFiles(mounts)
}

// layerFiles are those of a view of containerd's erofs snapshotter, which lists
// the topmost first and then what would put them together.
func layerFiles(mounts []mount.Mount) ([]string, error) {
	var files []string
	for _, m := range mounts {
		if m.Type != "erofs" {
			continue
		}
		for _, o := range m.Options {
			if strings.HasPrefix(o, "device=") {
				return nil, fmt.Errorf("layer %s is spread over several files: %w", m.Source, errdefs.ErrNotImplemented)
			}
		}
		files = append(files, m.Source)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("the image has no erofs layers: %w", errdefs.ErrNotImplemented)
	}
	slices.Reverse(files)
	return files, nil
}

// open opens a file that QEMU gets.
func (l *launch) open(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0)
	if err == nil {
		l.opened = append(l.opened, f)
	}
	return f, err
}

// listen makes a socket that QEMU serves.
func (l *launch) listen(name string) (*os.File, error) {
	s, err := net.ListenUnix("unix", &net.UnixAddr{Name: l.driver.file(l.record, name), Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	s.SetUnlinkOnClose(false)
	f, err := s.File()
	if err == nil {
		l.opened = append(l.opened, f)
	}
	return f, err
}

// closeFiles closes our copies of what QEMU has.
func (l *launch) closeFiles() {
	for _, f := range l.opened {
		f.Close()
	}
	if l.console != nil {
		l.console.close()
	}
	if l.card != nil {
		l.card.Tap.Close()
	}
}

// boot waits until the agent serves.
func (l *launch) boot(ctx context.Context) error {
	limit := l.driver.pace.boot
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	monitor, err := qemu.Dial(waiting, l.driver.file(l.record, qmpFile))
	if err != nil {
		return err
	}
	defer monitor.Close()
	if err := monitor.Do(waiting, "cont", nil, nil); err != nil {
		return err
	}
	if err := l.await(waiting, monitor.Events()); err != nil {
		if ctx.Err() == nil && waiting.Err() != nil {
			err = fmt.Errorf("the guest did not come up in %v: %w", limit, errdefs.ErrUnavailable)
		}
		return err
	}
	if l.vm, err = l.driver.hold(l.record, l.qemu, l.facts); err != nil {
		return err
	}
	// The event says that the agent serves, but one that is wrong may not.
	if _, err := l.vm.agent.state(waiting, limit); err != nil {
		return fmt.Errorf("the guest's agent does not answer: %w", err)
	}
	l.booted = true
	return nil
}

// await returns when the agent serves.
func (l *launch) await(ctx context.Context, events <-chan qemu.Event) error {
	for {
		select {
		case e, ok := <-events:
			if ok && opened(e) {
				return nil
			}
			if ok {
				continue
			}
		case <-l.qemu.Done():
		case <-ctx.Done():
			return ctx.Err()
		}
		return fmt.Errorf("QEMU ended before the guest was up: %w", errdefs.ErrUnavailable)
	}
}

// opened tells whether an event says that the agent has opened the payload's
// output, which it does once it serves.
func opened(e qemu.Event) bool {
	var change struct {
		ID   string `json:"id"`
		Open bool   `json:"open"`
	}
	return e.Name == "VSERPORT_CHANGE" && json.Unmarshal(e.Data, &change) == nil && change.Open && change.ID == stdoutPort
}

// tell has the guest run the payload, and hands the machine to its watch.
func (l *launch) tell(ctx context.Context) error {
	// Before the program prints.
	_ = logs.Mark(l.in.LogDir, "started generation "+strconv.FormatUint(l.in.Generation, 10))
	limit := l.driver.pace.run
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	l.vm.Started = time.Now()
	_, err := l.vm.agent.Run(limited, l.order())
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		return fmt.Errorf("the guest did not start the program in %v: %w", limit, errdefs.ErrUnavailable)
	}
	if err != nil {
		return refused(ctx, err)
	}
	if err := l.vm.confirm(ctx); err != nil {
		return err
	}
	return l.driver.enter(l.vm)
}

// order is all that the guest is told.
func (l *launch) order() *guestv1.RunRequest {
	in := l.in
	r := &guestv1.RunRequest{
		Layers: uint32(l.machine.layers()), Args: in.Args, Env: process.Override(in.Env, in.SecretEnv...), Cwd: in.Cwd, User: in.User,
		Hostname: in.Network.Hostname, Interface: l.card.order(),
		ResolvConf: read(in.Network.ResolvConf), Hosts: read(in.Network.Hosts),
		Memory: in.Resources.MemoryBytes, Pids: in.Resources.PIDs,
		Time: timestamppb.Now(),
	}
	if r.Memory <= 0 {
		r.Memory = memoryDefault
	}
	if r.Pids <= 0 {
		r.Pids = process.PIDsDefault
	}
	for i, m := range in.Mounts {
		r.Volumes = append(r.Volumes, &guestv1.Volume{Serial: volumeSerial(i), Path: m.Path, ReadOnly: m.ReadOnly, Folder: m.Folder})
	}
	for _, f := range in.Files {
		r.Files = append(r.Files, &guestv1.File{Path: f.Path, Content: f.Content, Mode: f.Mode, Owner: f.Owner})
	}
	return r
}

// order is what the guest is told of its network card.
func (c *card) order() *guestv1.Interface {
	if c == nil {
		return nil
	}
	o := &guestv1.Interface{HardwareAddress: c.MAC, Mtu: uint32(c.MTU)}
	for _, a := range c.Addresses {
		o.Addresses = append(o.Addresses, a.String())
	}
	for _, g := range c.Gateways {
		o.Gateways = append(o.Gateways, g.String())
	}
	return o
}

// dial connects to the agent.
func (m *vm) dial(ctx context.Context) (net.Conn, error) {
	if m.driver.opts.Channel == VSock {
		return channel.DialVsock(ctx, contextID(m.Number))
	}
	return channel.DialPort(ctx, m.driver.file(m.record, agentFile))
}

// undo leaves nothing of a failed start, and gives the guest's last words.
func (l *launch) undo(ctx context.Context) (words string) {
	if l.vm != nil {
		defer l.vm.close()
	}
	if l.qemu != nil {
		if err := l.driver.destroy(l.qemu); err != nil {
			slog.Error("end a machine that did not start", "workload", l.in.Name, "error", err)
			return "" // it holds its lock
		}
	}
	if l.console != nil {
		if logger, err := watchProcess(l.console.logger); err == nil {
			drain(ctx, logger)
			logger.close()
		}
	}
	if l.qemu != nil && !l.booted {
		words = lastWords(ctx, l.in.LogDir, l.facts.Began)
	}
	l.driver.clear(l.record, l.facts)
	return words
}
