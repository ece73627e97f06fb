package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"capsule/internal/config"
	"capsule/internal/logs"
	"capsule/internal/pid1"
	"capsule/internal/slot"
)

// called is the machine's name now.
func (m *machine) called() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.name
}

// rename gives the machine a name, "" the one that it was made with, and tells whether
// it had another.
func (m *machine) rename(name string) (changed bool, err error) {
	if name == "" {
		name = m.made()
	}
	m.mu.Lock()
	changed = m.name != name
	m.name = name
	m.mu.Unlock()
	if !changed {
		return false, nil
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return true, fmt.Errorf("set host name %q: %w", name, err)
	}
	return true, nil
}

// made is the name that comes with the machine's id.
func (m *machine) made() string {
	if id := readWord(m.idFile()); len(id) >= 4 {
		return pid1.HostName(id)
	}
	return "capsule"
}

// declared reads how the machine is configured, where anything can be read of it: also
// in recovery mode it has the name that its owner knows.
func (d *daemon) declared() {
	spec, err := config.Spec(d.store)
	if err == nil && d.store != nil {
		_, err = d.machine.rename(spec.GetHostname())
	}
	if err != nil {
		slog.Error("read the configuration of the machine; it is as it comes", "error", err)
	}
}

// configure makes the loop that makes the machine be as declared.
func (d *daemon) configure() {
	var network config.Network
	if d.trials != nil {
		network = d.trials
	}
	d.config = config.New(config.Options{
		Store: d.store, Registries: d.registries, Settled: func() bool { return d.updates.Tentative() == nil },
		Rename: d.rename, Network: network, Clock: d.askTime,
		Logs: saveLogLimits, Pool: d.volumes.SetLimits,
		Kernel: func(args []string) (slot.Arguments, error) { return slot.SetArguments(d.machine.boot, args) },
		Log:    slog.Default(),
	})
}

// rename gives the machine a name in all that tells it.
func (d *daemon) rename(name string) (string, error) {
	changed, err := d.machine.rename(name)
	now := d.machine.called()
	if !changed {
		return now, nil
	}
	slog.Info("the machine has another name", "name", now)
	err = errors.Join(err, d.machine.id.Rename(now))
	d.found.say()
	if n := d.network.Load(); n != nil {
		err = errors.Join(err, n.SetHostname(now))
	}
	d.machine.update(func(*shown) {})
	return now, err
}

func saveLogLimits(l logs.Limits) error {
	if err := os.MkdirAll(filepath.Dir(logs.LimitsFile), 0o755); err != nil {
		return err
	}
	return logs.SaveLimits(logs.LimitsFile, l)
}

// timeServers are those that are declared, else those that the network tells.
func (d *daemon) timeServers() []string {
	spec, err := config.Spec(d.store)
	if err != nil {
		slog.Error("read the time servers that are declared", "error", err)
	}
	if list := spec.GetNtp(); len(list) > 0 {
		return list
	}
	return d.machine.timeServers()
}

// askTime has the time servers asked soon: they are others.
func (d *daemon) askTime() {
	select {
	case d.timing <- struct{}{}:
	default:
	}
}

// reconfigured has the machine looked at: how its network stands may have changed.
func (d *daemon) reconfigured() {
	if d.config != nil {
		d.config.Wake()
	}
}

// keepConfigured runs the loop.
func (d *daemon) keepConfigured(ctx context.Context) { repeat(ctx, "configuration", d.config.Run) }
