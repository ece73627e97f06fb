package network

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"capsule/internal/nettest"
	"capsule/internal/uplink"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
)

// BOOT-08: DHCP names another server at a renewal and the old one goes; who runs
// already asks the new one, on the bridge, which microVMs are on too, and in the
// capsule's own network.
func TestUpstreamsFollowDHCP(t *testing.T) {
	w := newWorld(t)
	const old, next = "192.168.88.11", "192.168.88.12"
	w.lan.Addr(t, "box", old+"/24", next+"/24")
	web, _ := w.workload(t, "web")
	host := w.HostAttachment()
	upstream(t, w.lan, next, "192.0.2.12")
	dhcp := nettest.NewDHCP(nettest.Grant{Server: netip.MustParsePrefix(lan4 + "/24"), Give: netip.MustParseAddr("192.168.88.50"),
		Lease: time.Hour, Renew: 2 * time.Second, DNS: netip.MustParseAddr(old)})
	dhcp.Serve(t, w.lan, "box")

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- uplink.Run(ctx, uplink.Options{RunDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
			Select: func(l netlink.Link) bool { return l.Attrs().Name == "lan" },
			OnChange: func(s uplink.State) {
				var lan []netip.Prefix
				for _, l := range s.Links {
					lan = append(lan, l.Addresses...)
				}
				if err := w.SetUpstreams(slices.Clone(s.DNS)); err != nil {
					t.Error(err)
				}
				if err := w.SetLAN(lan); err != nil {
					t.Error(err)
				}
			}})
	}()
	t.Cleanup(func() {
		cancel()
		check(t, <-done)
	})
	names := func(server string) func() error {
		return func() error {
			if got := readFile(t, host.ResolvConf); !strings.Contains(got, "nameserver "+server+"\n") {
				return fmt.Errorf("resolv.conf of a host workload: %q", got)
			}
			return nil
		}
	}
	const quick = 30 * time.Second
	nettest.Eventually(t, quick, names(old))
	w.mu.Lock()
	lan := fmt.Sprint(ofFamily(true, w.Network.lan))
	w.mu.Unlock()
	if lan != "[192.168.88.0/24]" {
		t.Errorf("networks around: %s", lan)
	}
	dhcp.Set(func(g *nettest.Grant) { g.DNS = netip.MustParseAddr(next) })
	nettest.Eventually(t, quick, names(next))
	nettest.Eventually(t, quick, func() error {
		if got := said(query(t, web, "udp", "172.30.0.1", "example.org.", dns.TypeA)); got != "NOERROR 192.0.2.12" {
			return fmt.Errorf("a workload on the bridge: %q", got)
		}
		return nil
	})
}
