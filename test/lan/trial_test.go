//go:build linux

package lan

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"capsule/internal/identity"
	"capsule/internal/mdns"
	"capsule/internal/nettest"
	"capsule/internal/server"
	"capsule/internal/store"
	"capsule/internal/uplink"
)

const (
	uplinkName   = "up0"
	leased       = "192.168.70.50"
	declaredHost = "192.168.70.60"
)

// tried is a capsule with its real uplink: this process is the machine, as uplinks are
// of a whole one. On its network is a laptop that is its router, and behind that one
// more.
type tried struct {
	dir    string
	laptop *laptop // on the capsule's own network
	far    *laptop // behind its router
	end    func()

	id *identity.Identity
}

const triedName = "capsule-a"

// newTried is claimed by both laptops, and has its address by DHCP.
func newTried(t *testing.T) *tried {
	t.Helper()
	router, far := nettest.New(t), nettest.New(t)
	nettest.Cable(t, uplinkName, router, laptopLink)
	router.Addr(t, laptopLink, laptopAddress)
	between(t, router, far)
	c := &tried{dir: t.TempDir(), laptop: newLaptopIn(t, router)}
	c.far = &laptop{program: c.laptop.program, home: t.TempDir(), ns: far}
	nettest.NewDHCP(nettest.Grant{
		Server: netip.MustParsePrefix(laptopAddress), Give: netip.MustParseAddr(leased), DNS: netip.MustParseAddr("192.168.70.1"), Lease: time.Hour,
	}).Serve(t, router, laptopLink)
	c.start(t)
	t.Cleanup(func() { c.end() })
	for _, l := range []*laptop{c.laptop, c.far} {
		args := []string{"claim", leased, "--operator", "ann"}
		if l == c.laptop {
			nettest.Eventually(t, 20*time.Second, func() error {
				conn, err := net.Dial("tcp", leased+":50000") //nolint:noctx // it opens at once, or never
				if err == nil {
					conn.Close()
				}
				return err
			})
			l.must(t, string(c.id.Offer().Code)+"\n", args...)
			continue
		}
		// Only one claims; the other is given the same keys.
		if err := os.CopyFS(l.home, os.DirFS(c.laptop.home)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// between makes the far laptop one of a network behind the router.
func between(t *testing.T, router, far *nettest.NS) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan1"
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerNamespace = "lan0", netlink.NsFd(far.FD)
	if err := router.Handle.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	router.Up(t, "lan1")
	router.Addr(t, "lan1", "192.168.80.1/24")
	router.Sysctl(t, "ipv4/ip_forward", "1")
	far.Up(t, "lan0")
	far.Addr(t, "lan0", "192.168.80.9/24")
	far.Route(t, "0.0.0.0/0", "192.168.80.1")
}

// start runs what a capsule runs of this, on the state that is there.
func (c *tried) start(t *testing.T) {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	id, err := identity.Load(filepath.Join(c.dir, "identity"), filepath.Join(c.dir, "seed.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := id.OpenClaim(identity.Claiming{State: filepath.Join(c.dir, "claim.json"), SinceBoot: func() time.Duration { return time.Minute }}); err != nil {
		t.Fatal(err)
	}
	c.id = id
	st, err := store.Open(filepath.Join(c.dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	ours := func(l netlink.Link) bool { return l.Attrs().Name == uplinkName }
	trials, err := uplink.OpenTrials(t.Context(), uplink.TrialOptions{Store: st, Select: ours, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	tls, err := id.ServerTLS(triedName)
	if err != nil {
		t.Fatal(err)
	}
	api, err := server.New(server.Options{TLS: tls, Identity: id, Store: st, Network: trials, Machine: around{triedName}, Version: "v1.2.3", Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", ":50000") //nolint:noctx // it opens at once
	if err != nil {
		t.Fatal(err)
	}
	b := &box{name: triedName, id: id, responder: mdns.NewResponder(quiet)}
	b.say()
	id.OnChange(b.say)
	ctx, cancel := context.WithCancel(context.Background())
	parts := []func() error{
		func() error { return api.Serve(listener) },
		func() error { return b.responder.Run(ctx) },
		func() error { return trials.Run(ctx) },
		func() error {
			return uplink.Run(ctx, uplink.Options{
				Settings: trials.Settings, RunDir: filepath.Join(c.dir, "run"), Log: quiet, Select: ours,
				OnChange: func(s uplink.State) {
					var links []mdns.Link
					for _, l := range s.Links {
						links = append(links, mdns.Link(l))
					}
					b.responder.On(links)
					trials.Heard(s)
				},
			})
		},
	}
	done := make(chan error)
	for _, run := range parts {
		go func() { done <- run() }()
	}
	c.end = func() {
		cancel()
		api.Stop()
		for range parts {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}
}

// cut ends it as a power cut does, but for the network's links, and starts it again.
func (c *tried) cut(t *testing.T) {
	t.Helper()
	c.end()
	link := (*nettest.NS)(nil).Link(t, uplinkName)
	have, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range have {
		if err := netlink.AddrDel(link, &a); err != nil {
			t.Fatal(err)
		}
	}
	c.start(t)
}

// declares writes a manifest of the network.
func (c *tried) declares(t *testing.T, address, gateway string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "capsule.yaml")
	text := "kind: Capsule\n"
	if address != "" {
		text += fmt.Sprintf("network:\n  links:\n    - link: %s\n      addresses: [%s]\n      gateways: [%s]\n  dns: [192.168.70.1]\n", uplinkName, address, gateway)
	}
	write(t, path, []byte(text))
	return path
}

// addresses of the capsule's uplink.
func (c *tried) addresses(t *testing.T) (list []string) {
	t.Helper()
	have, err := netlink.AddrList((*nettest.NS)(nil).Link(t, uplinkName), netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range have {
		list = append(list, a.IP.String())
	}
	return list
}

func (c *tried) at(t *testing.T, want string) {
	t.Helper()
	nettest.Eventually(t, 20*time.Second, func() error {
		if got := c.addresses(t); !slices.Equal(got, []string{want}) {
			return fmt.Errorf("addresses %v, want %s", got, want)
		}
		return nil
	})
}

func (l *laptop) says(t *testing.T, want string, args ...string) {
	t.Helper()
	nettest.Eventually(t, 20*time.Second, func() error {
		if out, errs, _ := l.run(t, "", args...); !strings.Contains(out, want) {
			return fmt.Errorf("%q does not say %q: %s", strings.Join(args, " "), want, errs)
		}
		return nil
	})
}

// An address of one's own is confirmed where it is new, and the context follows; back
// to DHCP is confirmed where the capsule is found. One that somebody has is refused,
// and changes nothing.
func TestTrialConfirmed(t *testing.T) {
	c := newTried(t)
	_, errs, exit := c.laptop.run(t, "", "apply", "-f", c.declares(t, "192.168.70.1/24", "192.168.70.2"))
	if exit != 1 || !strings.Contains(errs, "address 192.168.70.1 of link \"up0\" is taken by another machine") {
		t.Errorf("the router's address: exit %d", exit)
	}
	if out := c.laptop.must(t, "", "events"); strings.Contains(out, "network-tried") {
		t.Error("it was tried")
	}
	c.at(t, leased)

	began := time.Now()
	c.laptop.must(t, "", "apply", "-f", c.declares(t, declaredHost+"/24", "192.168.70.1"))
	t.Logf("confirmed after %v", time.Since(began))
	c.at(t, declaredHost)
	c.laptop.says(t, declaredHost+":50000", "context", "list")
	c.laptop.must(t, "", "capsule", "info")
	c.laptop.says(t, "network-confirmed", "events")
	c.cut(t)
	c.at(t, declaredHost)
	c.laptop.must(t, "", "capsule", "info")

	c.laptop.must(t, "", "apply", "-f", c.declares(t, "", ""))
	c.at(t, leased)
	c.laptop.says(t, leased+":50000", "context", "list")
}

// A gateway that leads nowhere: who is behind it is told when the network goes back,
// and that it did; another change meanwhile is refused.
func TestTrialReverts(t *testing.T) {
	c := newTried(t)
	c.far.must(t, "", "capsule", "info")
	type ended struct {
		errs string
		exit int
		took time.Duration
	}
	done := make(chan ended)
	go func() {
		began := time.Now()
		_, errs, exit := c.far.run(t, "", "apply", "-f", c.declares(t, leased+"/24", "192.168.70.2"))
		done <- ended{errs, exit, time.Since(began)}
	}()
	c.laptop.says(t, "network-tried", "events")
	_, errs, exit := c.laptop.run(t, "", "apply", "-f", c.declares(t, declaredHost+"/24", "192.168.70.1"))
	if exit != 1 || !strings.Contains(errs, "the network is busy") {
		t.Errorf("a second change: exit %d", exit)
	}
	e := <-done
	if e.exit != 1 || !strings.Contains(e.errs, "its network goes back at ") || !strings.Contains(e.errs, "the change of the network was taken back: it was not confirmed within 1m0s") {
		t.Errorf("exit %d after %v", e.exit, e.took)
	}
	c.far.must(t, "", "capsule", "info")
	c.laptop.says(t, "network-reverted", "events")
}

// A power cut while a change is tried: the capsule comes up where it was.
func TestTrialCut(t *testing.T) {
	c := newTried(t)
	done := make(chan string)
	go func() {
		// Nobody is there: it would be confirmed at once.
		_, errs, _ := c.laptop.run(t, "", "apply", "-f", c.declares(t, declaredHost+"/24", "192.168.70.1"), "--confirm-at", "192.168.70.99")
		done <- errs
	}()
	c.at(t, declaredHost)
	c.cut(t)
	c.at(t, leased)
	if errs := <-done; !strings.Contains(errs, "the change of the network was taken back: the capsule or its service was started again") {
		t.Error("it is not told why")
	}
}
