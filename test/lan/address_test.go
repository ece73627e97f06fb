//go:build linux && machine

package lan

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"capsule/internal/nettest"
)

const (
	fixedAddress  = "192.168.70.70"
	fixedAddress6 = "2001:db8:70::70"
	otherAddress  = "192.168.70.71"
)

// capsuleNetwork is a manifest of the capsule's only link.
func capsuleNetwork(gateway string, addresses ...string) string {
	return fmt.Sprintf("kind: Capsule\nnetwork:\n  links:\n    - addresses: [%s]\n      gateways: [%s]\n  dns: [%s]\n", strings.Join(addresses, ", "), gateway, peer4)
}

// A capsule of the built image gets addresses of its own in the place of DHCP's, and
// all that is told of addresses follows. What nobody reaches, and what a power cut
// leaves unconfirmed, it goes back from.
func TestDeclaredAddress(t *testing.T) {
	skipSlow(t)
	n := newNeighbourhood(t)
	n.image(t)
	n.apply(t, workload("Container", "web", ports("8080:80")))
	n.peerHost().reaches(t, webAt(n.v4), "web")
	for _, row := range []struct {
		name string
		run  func(*neighbourhood, *testing.T)
	}{
		{"confirmed", (*neighbourhood).declaredAddress},
		{"reverts", (*neighbourhood).typo},
		{"cut", (*neighbourhood).cutInTrial},
	} {
		t.Run(row.name, func(t *testing.T) { row.run(n, t) })
	}
}

func webAt(address string) string { return address + ":8080" }

// declaredAddress is not one that somebody has; it is confirmed, and everything moves.
func (n *neighbourhood) declaredAddress(t *testing.T) {
	peer, before := n.peerHost(), n.v4
	n.refuses(t, capsuleNetwork(laptop4, peer4+"/24"), "address "+peer4+" of link")
	n.must(t, capsuleNetwork(laptop4, fixedAddress+"/24", fixedAddress6+"/64"), "apply", "-f", "-")
	n.v4 = fixedAddress
	// It is confirmed at the first of the new addresses that answers, of either family.
	if out := n.must(t, "", "context", "list"); !strings.Contains(out, fixedAddress+":50000") && !strings.Contains(out, "["+fixedAddress6+"]:50000") {
		t.Errorf("the context has another address: %s", out)
	}
	peer.reaches(t, webAt(fixedAddress), "web")
	peer.reaches(t, "["+fixedAddress6+"]:8080", "web")
	peer.unreachable(t, webAt(before))
	n.says(t, fixedAddress+":50000", "discover", "--timeout", "2s")
	if out := n.must(t, "", "workload", "exec", "web", "--", "/payload", "lookup", "example.org"); strings.TrimSpace(out) != "example.org 192.0.2.2" {
		t.Errorf("the declared DNS server was not asked: %q", out)
	}
}

// typo is a network that nobody here is in.
func (n *neighbourhood) typo(t *testing.T) {
	began := time.Now()
	_, errs, exit := n.run(t, capsuleNetwork("10.77.0.1", "10.77.0.5/24"), "apply", "-f", "-")
	if exit != 1 || !strings.Contains(errs, "its network goes back at ") || !strings.Contains(errs, "taken back: it was not confirmed within 1m0s") {
		t.Errorf("exit %d after %v", exit, time.Since(began))
	}
	n.peerHost().reaches(t, webAt(n.v4), "web")
	n.must(t, "", "capsule", "info")
}

// cutInTrial takes the power while another address is in force and not confirmed.
func (n *neighbourhood) cutInTrial(t *testing.T) {
	peer := n.peerHost()
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.run(t, capsuleNetwork(laptop4, otherAddress+"/24"), "apply", "-f", "-", "--confirm-at", "192.168.70.99")
	}()
	peer.waitsFor(t, webAt(otherAddress))
	cut(t, n.machine)
	start(t, n.machine)
	<-done
	nettest.Eventually(t, 2*time.Minute, func() error {
		out, errs, _ := n.run(t, "", "events")
		if !strings.Contains(out, "started again before it was confirmed") {
			return fmt.Errorf("events do not tell why it went back: %s", errs)
		}
		return nil
	})
	peer.waitsFor(t, webAt(n.v4)) // DHCP is asked anew
	peer.unreachable(t, webAt(otherAddress))
}
