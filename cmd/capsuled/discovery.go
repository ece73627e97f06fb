package main

import (
	"log/slog"
	"sync"

	"capsule/internal/identity"
	"capsule/internal/mdns"
	"capsule/internal/uplink"
	"capsule/internal/version"
)

// discovery keeps what mDNS says of the capsule in step with what it is.
type discovery struct {
	*mdns.Responder
	machine *machine
	id      *identity.Identity
	mu      sync.Mutex // what is read last is said last
}

func newDiscovery(m *machine, id *identity.Identity) *discovery {
	d := &discovery{Responder: mdns.NewResponder(slog.Default()), machine: m, id: id}
	id.OnChange(d.say)
	d.say()
	return d
}

// say tells who the capsule is, and whether it is anybody's.
func (d *discovery) say() {
	d.mu.Lock()
	defer d.mu.Unlock()
	state := mdns.Unclaimed
	switch {
	case d.machine.installs:
		state = mdns.Installer
	case d.id.Claimed():
		state = mdns.Claimed
	}
	d.Say(mdns.Service{
		Name: d.machine.called(), ID: readWord(d.machine.idFile()), Version: version.Version,
		State: state, Fingerprint: d.id.Fingerprint(), Port: apiPort,
	})
}

// on follows the uplinks: nobody else is told, workloads least of all.
func (d *discovery) on(s uplink.State) {
	links := make([]mdns.Link, 0, len(s.Links))
	for _, l := range s.Links {
		links = append(links, mdns.Link(l))
	}
	d.On(links)
}
