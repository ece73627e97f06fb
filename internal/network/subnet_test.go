package network

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// An uplink with the workloads' network is said at once, cuts nobody off that is
// outside of it, and moves the workloads at the next boot, not before.
func TestOverlap(t *testing.T) {
	w := newWorld(t)
	w.lan.Addr(t, "box", "172.30.5.1/24")
	self.Addr(t, "lan", "172.30.5.2/24")
	web, _ := w.workload(t, "web")
	greet(t, web, ":80", "web")
	greet(t, self, ":50000", "api")
	w.publish(t, Published{Workload: "web", Port: 8080, Target: 80, Protocol: "tcp"})
	if text := w.Overlap(); text != "" {
		t.Error(text)
	}
	check(t, w.SetLAN([]netip.Prefix{netip.MustParsePrefix("172.30.5.2/24")}))
	if text := w.Overlap(); !strings.Contains(text, "172.30.5.0/24") || !strings.Contains(text, "172.30.0.0/16") {
		t.Errorf("said: %q", text)
	}
	reaches(t, w.lan, "172.30.5.2:50000", "api")
	reaches(t, w.lan, "172.30.5.2:8080", "web")
	w.restart(t)
	if _, at := w.workload(t, "web"); at.Addresses[0] != netip.MustParseAddr("172.30.0.2") {
		t.Errorf("moved while it runs: %v", at.Addresses)
	}

	// A boot: nothing is left but the store.
	check(t, w.Close())
	for _, ns := range []string{"web"} {
		check(t, removeNetNS(w.netNS(ns)))
	}
	check(t, netlink.LinkDel(self.Link(t, bridgeName)))
	w.opts.RunDir, w.Network = t.TempDir(), nil
	w.restart(t)
	web, at := w.workload(t, "web")
	if at.Addresses[0] != netip.MustParseAddr("10.230.0.2") {
		t.Errorf("address %v", at.Addresses)
	}
	greet(t, web, ":80", "web")
	w.publish(t, Published{Workload: "web", Port: 8080, Target: 80, Protocol: "tcp"})
	check(t, w.SetLAN([]netip.Prefix{netip.MustParsePrefix("172.30.5.2/24")}))
	if text := w.Overlap(); text != "" {
		t.Error(text)
	}
	reaches(t, w.lan, "172.30.5.2:8080", "web")
	if got := asks(t, web, "udp", "10.230.0.1", "web.", 1); got != "NOERROR 10.230.0.2" {
		t.Errorf("name: %q", got)
	}
	check(t, w.Sync(context.Background(), nil))
}

// So it is by IPv6 alone, as where a capsule is a workload of another: who has an
// address keeps its number, and that by IPv4.
func TestOverlapIPv6(t *testing.T) {
	w := newWorld(t)
	w.workload(t, "first")
	w.workload(t, "web")
	const inside = "fd7a:9c1e:30::7/64"
	check(t, w.SetLAN([]netip.Prefix{netip.MustParsePrefix(box4 + "/24"), netip.MustParsePrefix(inside)}))
	if text := w.Overlap(); !strings.Contains(text, "fd7a:9c1e:30::/64") || !strings.Contains(text, "reboot") {
		t.Errorf("said: %q", text)
	}
	check(t, w.Detach(t.Context(), "first"))
	check(t, w.Close())
	check(t, removeNetNS(w.netNS("web")))
	check(t, netlink.LinkDel(self.Link(t, bridgeName)))
	w.opts.RunDir, w.Network = t.TempDir(), nil
	w.restart(t)
	web, at := w.workload(t, "web")
	if got := fmt.Sprint(at.Addresses); got != "[172.30.0.3 fd7a:9c1e:31::3]" {
		t.Errorf("addresses %s", got)
	}
	greet(t, web, ":80", "web")
	w.publish(t, Published{Workload: "web", Port: 8080, Target: 80, Protocol: "tcp"})
	check(t, w.SetLAN([]netip.Prefix{netip.MustParsePrefix(box4 + "/24"), netip.MustParsePrefix(inside)}))
	if text := w.Overlap(); text != "" {
		t.Error(text)
	}
	reaches(t, w.lan, "["+box6+"]:8080", "web")
	reaches(t, self, "[fd7a:9c1e:31::3]:80", "web")
	if got := asks(t, web, "udp", "fd7a:9c1e:31::1", "web.", 28); got != "NOERROR fd7a:9c1e:31::3" {
		t.Errorf("name: %q", got)
	}
	// It stays there, however the networks around change while it runs.
	check(t, w.SetLAN([]netip.Prefix{netip.MustParsePrefix(box4 + "/24")}))
	w.restart(t)
	if _, again := w.workload(t, "web"); fmt.Sprint(again.Addresses) != fmt.Sprint(at.Addresses) {
		t.Errorf("addresses %v, were %v", again.Addresses, at.Addresses)
	}
}
