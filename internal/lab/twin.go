//go:build unix

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
)

// Twin makes a machine like this one with another disk, a raw file that is moved into
// its folder. It has a copy of this one's firmware variables, the same keys, and ports
// of its own; its writes are not recorded. It starts nothing.
func (m *Machine) Twin(ctx context.Context, name, disk string) (*Machine, error) {
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("machine name %q: %w", name, errdefs.ErrInvalidArgument)
	}
	t := *m
	t.Name, t.Dir, t.Sockets, t.Record = name, filepath.Join(filepath.Dir(m.Dir), name), "", false
	ports, err := fix(append([]Publish{{Port: capsulePort, Protocol: "tcp"}}, m.anyPorts()...))
	if err != nil {
		return nil, err
	}
	t.API, t.Publish = net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0].HostPort)), ports[1:]
	if err := os.Mkdir(t.Dir, 0o700); os.IsExist(err) {
		return nil, fmt.Errorf("lab machine %q exists already: %w", name, errdefs.ErrAlreadyExists)
	} else if err != nil {
		return nil, fmt.Errorf("make lab machine %q: %w", name, err)
	}
	if err := t.settle(ctx, m, disk); err != nil {
		return nil, errors.Join(fmt.Errorf("make lab machine %q: %w", name, err), os.RemoveAll(t.Dir), t.removeSockets())
	}
	return &t, nil
}

// anyPorts are those that are published, at other ports of this machine.
func (m *Machine) anyPorts() (ports []Publish) {
	for _, p := range m.Publish {
		ports = append(ports, Publish{Port: p.Port, Protocol: p.Protocol})
	}
	return ports
}

// settle fills the folder of a twin.
func (m *Machine) settle(ctx context.Context, like *Machine, disk string) error {
	for _, name := range []string{"variables.fd", "ca.pem", "operator.pem", "operator.key"} {
		if err := copySparse(ctx, m.path(name), like.path(name)); err != nil {
			return err
		}
	}
	if err := m.pickSockets(); err != nil {
		return err
	}
	if err := os.Rename(disk, m.Disk()); err != nil {
		return err
	}
	return m.save()
}
