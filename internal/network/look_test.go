package network

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

func TestLook(t *testing.T) {
	w := newWorld(t)
	_, at := w.workload(t, "web")
	link, err := w.Link("web")
	check(t, err)
	if _, err := netlink.LinkByName(link); err != nil {
		t.Errorf("link %q: %v", link, err)
	}
	if link, err := w.Link("nobody"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("who has none: %q, %v", link, err)
	}
	w.publish(t, Published{Workload: "web", Port: 8081, Target: 80, Protocol: "tcp"})
	rules, err := w.Rules()
	check(t, err)
	for _, want := range []string{"table inet capsule {", "8081", at.Addresses[0].String(), "# kernel: chain published has "} {
		if !strings.Contains(rules, want) {
			t.Errorf("no %q in %s", want, rules)
		}
	}
	for line := range strings.Lines(rules) {
		if words := strings.Fields(line); strings.HasPrefix(line, "# kernel: chain ") && words[5] != words[8] {
			t.Errorf("the kernel has others: %s", line)
		}
	}
}
