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
	fixedAddress = "192.168.70.70"
	otherAddress = "192.168.70.71"
)

// capsuleNetwork is a manifest of the capsule's only link.
func capsuleNetwork(gateway string, addresses ...string) string {
	return fmt.Sprintf("kind: Capsule\nnetwork:\n  links:\n    - addresses: [%s]\n      gateways: [%s]\n  dns: [%s]\n", strings.Join(addresses, ", "), gateway, peer4)
}

// A capsule of the built image gets addresses of its own in the place of DHCP's, and
// all that is told of addresses follows. What nobody reaches, and what a power cut
// leaves unconfirmed, it goes back from.
func TestDeclaredAddress(t *testing.T) {
	n := newNeighbourhood(t)
	n.image(t)
	n.apply(t, workload("Container", "web", ports("8080:80")))
	peer := n.peerHost()
	at := func(address string) string { return address + ":8080" }
	peer.reaches(t, at(firstAddress), "web")

	n.refuses(t, capsuleNetwork(laptop4, peer4+"/24"), "address "+peer4+" of link")
	n.must(t, capsuleNetwork(laptop4, fixedAddress+"/24", "2001:db8:70::70/64"), "apply", "-f", "-")
	n.says(t, fixedAddress+":50000", "context", "list")
	peer.reaches(t, at(fixedAddress), "web")
	peer.reaches(t, "[2001:db8:70::70]:8080", "web")
	peer.unreachable(t, at(firstAddress))
	n.finds(t, capsuleName, "claimed", fixedAddress+":50000")
	if out := n.must(t, "", "workload", "exec", "web", "--", "/payload", "lookup", "example.org"); strings.TrimSpace(out) != "example.org 192.0.2.2" {
		t.Errorf("the declared DNS server was not asked: %q", out)
	}

	// A network that nobody here is in.
	began := time.Now()
	_, errs, exit := n.run(t, capsuleNetwork("10.77.0.1", "10.77.0.5/24"), "apply", "-f", "-")
	if exit != 1 || !strings.Contains(errs, "its network goes back at ") || !strings.Contains(errs, "taken back: it was not confirmed within 1m0s") {
		t.Errorf("exit %d after %v", exit, time.Since(began))
	}
	peer.reaches(t, at(fixedAddress), "web")
	n.must(t, "", "capsule", "info")

	done := make(chan struct{})
	go func() {
		defer close(done)
		n.run(t, capsuleNetwork(laptop4, otherAddress+"/24"), "apply", "-f", "-", "--confirm-at", "192.168.70.99")
	}()
	nettest.Eventually(t, 30*time.Second, func() error {
		_, err := peer.http(at(otherAddress), time.Second)
		return err
	})
	cut(t, n.machine)
	start(t, n.machine)
	<-done
	n.says(t, "started again before it was confirmed", "events")
	peer.reaches(t, at(fixedAddress), "web")
	peer.unreachable(t, at(otherAddress))
}
