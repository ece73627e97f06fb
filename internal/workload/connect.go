package workload

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/network"
)

// Modes of WorkloadSpec.network; "" is bridge.
const (
	modeBridge = "bridge"
	modeHost   = "host"
	modeNone   = "none"
)

func modeOf(obj *v1.Object) string {
	if mode := obj.GetWorkload().GetSpec().GetNetwork(); mode != "" {
		return mode
	}
	return modeBridge
}

// deniesLAN says whether the workload is kept off the networks around the capsule.
func deniesLAN(obj *v1.Object) bool { return obj.GetWorkload().GetSpec().GetLan() == "deny" }

// attach makes the network that an object asks for; it is there already when
// only the daemon was restarted.
func (l *Loop) attach(ctx context.Context, obj *v1.Object, m *memory) (err error) {
	var a network.Attachment
	switch modeOf(obj) {
	case modeHost:
		a = l.opts.Network.HostAttachment()
	case modeNone:
		a, err = l.opts.Network.AttachNone(obj.Meta.Name)
	default:
		a, err = l.opts.Network.Attach(ctx, obj.Meta.Name, deniesLAN(obj))
	}
	if err != nil {
		return err
	}
	m.attachment, m.attached = a, true
	return nil
}

// reconnectOld puts the network back as the serving generation has it: a new
// one of another mode, or that may reach another part of the world, was prepared
// with its own, under the same name.
func (l *Loop) reconnectOld(ctx context.Context, obj *v1.Object, m *memory) error {
	before, err := l.served.get(obj.Meta)
	if err != nil || before == nil || before.Meta.Generation == obj.Meta.Generation ||
		modeOf(before) == modeOf(obj) && deniesLAN(before) == deniesLAN(obj) {
		return err
	}
	return l.attach(ctx, before, m)
}

func networkOf(obj *v1.Object, a network.Attachment) Network {
	return Network{
		Mode: modeOf(obj), NetNS: a.NetNS, Hostname: obj.Meta.Name,
		ResolvConf: a.ResolvConf, Hosts: a.Hosts,
	}
}

// connect keeps the published ports as they should be, and the attachment of
// what a former daemon started known.
func (l *Loop) connect(ctx context.Context, obj *v1.Object, m *memory, d decision, found []seen) error {
	name := obj.Meta.Name
	before, err := l.served.get(obj.Meta)
	if err != nil {
		return err
	}
	wanted := obj.Meta.DeletedAt == nil && !obj.GetWorkload().GetIntent().GetStopped() && d.Status.Phase != v1.Phase_PHASE_EXITED
	if err := l.opts.Network.SetStopped(name, !wanted); err != nil {
		return err
	}
	if before == nil || !wanted {
		return l.ports.set(ctx, name, nil)
	}
	runs := slices.ContainsFunc(found, func(s seen) bool { return s.State == Running })
	var attachErr error // no reason to hold back the ports of all others
	if runs && !m.attached {
		attachErr = l.attach(ctx, before, m)
	}
	return errors.Join(attachErr, l.ports.set(ctx, name, Ports(before)))
}

// Ports are the published ports of a spec, which was checked at apply.
func Ports(obj *v1.Object) []network.Published {
	var published []network.Published
	for _, p := range obj.GetWorkload().GetSpec().GetPorts() {
		address, _ := netip.ParseAddr(p.Address) // the zero Addr is all
		from, err := network.ParseSource(p.From)
		if err != nil {
			continue // of a later version: nobody's is safer than anybody's
		}
		protocol := p.Protocol
		if protocol == "" {
			protocol = "tcp"
		}
		published = append(published, network.Published{
			Workload: obj.Meta.Name, Address: address, Port: uint16(p.HostPort), End: uint16(p.HostPortEnd), Target: uint16(p.Port),
			Protocol: protocol, From: from, Host: modeOf(obj) == modeHost,
		})
	}
	return published
}

// ports is the set of all published ports of workloads that should run.
type ports struct {
	publish func(context.Context, []network.Published) error

	mu       sync.Mutex
	want     map[string][]network.Published
	expected map[string]bool // not looked at since the daemon started
	behind   bool            // the last publish failed or was held back
	given    []network.Published
	left     map[string]error // why not all of a workload's are published
}

// expect holds publishing back until set was called for all names.
func (p *ports) expect(names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.behind = true
	p.expected = map[string]bool{}
	for _, name := range names {
		p.expected[name] = true
	}
}

// set says what a workload publishes, and publishes the whole set on a change.
func (p *ports) set(ctx context.Context, name string, published []network.Published) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.want[name], published) {
		p.behind = true
		p.want[name] = published
	}
	if len(published) == 0 {
		delete(p.want, name)
	}
	delete(p.expected, name)
	if !p.behind || len(p.expected) > 0 {
		return p.left[name]
	}
	all, left := p.fitting()
	if err := p.publish(ctx, all); err != nil {
		return err
	}
	p.behind, p.given, p.left = false, all, left
	return left[name]
}

// fitting are the ports that can be published together. A workload that was declared
// without a port may still serve on it, or be gone back to, when another one has it:
// it stays with whom it was given to.
func (p *ports) fitting() (all []network.Published, left map[string]error) {
	for _, name := range slices.Sorted(maps.Keys(p.want)) {
		all = append(all, p.want[name]...)
	}
	if network.Conflicts(all) == nil {
		return all, nil
	}
	slices.SortStableFunc(all, func(a, b network.Published) int {
		return cmp.Compare(slices.Index(p.given, b), slices.Index(p.given, a))
	})
	left = map[string]error{}
	var fit []network.Published
	for _, port := range all {
		if err := network.Conflicts(append(slices.Clip(fit), port)); err != nil {
			left[port.Workload] = err
			continue
		}
		fit = append(fit, port)
	}
	return fit, left
}
