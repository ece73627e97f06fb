package manifest

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
)

// What an absent field means; a capsule stores it filled in, so that a later
// version with another default changes nothing that was declared before.
const (
	defaultNetwork  = "bridge"
	defaultRestart  = "always"
	defaultProtocol = "tcp"
	defaultPIDs     = 4096
	defaultGrace    = 10 * time.Second
)

// Default fills absent fields that have a fixed default and brings addresses,
// paths and sizes to their one spelling. It tells what of that the operator
// should know.
func Default(o *capsulev1.Object) (notes []string) {
	if s := o.GetWorkload().GetSpec(); s != nil {
		defaultWorkload(s)
	}
	if s := o.GetVolume().GetSpec(); s != nil {
		notes = defaultVolume(s)
	}
	if s := o.GetCapsule().GetSpec(); s != nil {
		defaultCapsule(o.GetMeta(), s)
	}
	return notes
}

func defaultWorkload(s *capsulev1.WorkloadSpec) {
	if s.Network == "" {
		s.Network = defaultNetwork
	}
	// Written out or not, it is the same, and nothing to start a workload anew for.
	if s.Lan == lanAllow {
		s.Lan = ""
	}
	if s.Restart == "" {
		s.Restart = defaultRestart
	}
	if s.Resources == nil {
		s.Resources = &capsulev1.Resources{}
	}
	if s.Resources.Pids == 0 {
		s.Resources.Pids = defaultPIDs
	}
	if s.StopGrace == nil {
		s.StopGrace = durationpb.New(defaultGrace)
	}
	for _, p := range s.Ports {
		if p.Protocol == "" {
			p.Protocol = defaultProtocol
		}
		if a, err := netip.ParseAddr(p.Address); err == nil {
			p.Address = a.String()
		}
		defaultRange(p)
		p.From = sourceText(p.From)
	}
	defaultMounts(s.Mounts)
	defaultSecrets(s)
	defaultHealth(s)
}
