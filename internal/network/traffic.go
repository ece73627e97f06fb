package network

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"capsule/internal/links"
)

// Traffic is what went over a workload's link since it was made, in bytes, as the
// workload sees it.
type Traffic struct{ Received, Sent uint64 }

// Traffic gives that of each workload that has a link, by name. A microVM's card
// stands for the same link.
func (n *Network) Traffic() (map[string]Traffic, error) {
	held, err := n.held()
	if err != nil {
		return nil, fmt.Errorf("read traffic: %w", err)
	}
	all, err := links.List()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // a part of them is better than none
		return nil, fmt.Errorf("read traffic: %w", err)
	}
	byLink := map[string]*netlink.LinkStatistics{}
	for _, l := range all {
		byLink[l.Attrs().Name] = l.Attrs().Statistics
	}
	traffic := map[string]Traffic{}
	for name, a := range held {
		// What the capsule's end receives, the workload has sent.
		if s := byLink[n.hostLink(a)]; s != nil {
			traffic[name] = Traffic{Received: s.TxBytes, Sent: s.RxBytes}
		}
	}
	return traffic, nil
}
