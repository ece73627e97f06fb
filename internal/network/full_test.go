package network

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"capsule/internal/nettest"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The bridge has an end, which is said by its number and with what to do, before the
// kernel says it by an error of its own.
func TestBridgeFull(t *testing.T) {
	kv := &memoryKV{m: map[string][]byte{}}
	n := &Network{opts: Options{Store: kv, Subnets: DefaultSubnets}}
	for i := range workloadsMax {
		n.last = uint16(firstHost + i)
		check(t, n.put(fmt.Sprint("w", i), DefaultSubnets.host(n.last)))
	}
	_, err := n.allocate("more")
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "room for 1023 workloads") || !strings.Contains(err.Error(), "delete one") {
		t.Errorf("%v", err)
	}
	if _, err := n.allocate("w7"); err != nil {
		t.Errorf("who has a place: %v", err)
	}
	check(t, kv.Delete("w7"))
	if a, err := n.allocate("more"); err != nil || DefaultSubnets.number(a) != workloadsMax+firstHost {
		t.Errorf("%v, %v", a, err)
	}
}

// What the kernel really has room for.
func TestKernelBridgeFull(t *testing.T) {
	ns := nettest.New(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	check(t, ns.Handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	attrs.MasterIndex = ns.Link(t, bridgeName).Attrs().Index
	for i := range workloadsMax {
		attrs.Name = fmt.Sprint("a", i)
		check(t, ns.Handle.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: fmt.Sprint("b", i)}))
	}
	attrs.Name = "more"
	if err := ns.Handle.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other"}); !errors.Is(err, unix.EXFULL) {
		t.Errorf("one more link: %v", err)
	}
}

// 200 workloads with many ports each: none of it takes long, by the processor's time,
// of which others on this machine take nothing away.
func TestManyPorts(t *testing.T) {
	w := newWorld(t)
	web, _ := w.workload(t, "web")
	greet(t, web, ":80", "web")
	const workloads, each = 200, 64
	held := map[string]addresses{}
	var ports []Published
	for i := range workloads {
		name := fmt.Sprint("w", i)
		if i == 0 {
			name = "web"
		}
		a := DefaultSubnets.host(uint16(firstHost + i))
		held[name] = a
		check(t, w.put(name, a))
		for j := range each {
			p := Published{Workload: name, Port: uint16(2000 + i*each + j), Target: 80, Protocol: "tcp"}
			if p.Port >= apiPort {
				p.Port++
			}
			if j%2 == 1 {
				p.From = Source{LAN: true}
			}
			ports = append(ports, p)
		}
	}
	check(t, w.SetLAN([]netip.Prefix{netip.MustParsePrefix(box4 + "/24"), netip.MustParsePrefix(box6 + "/64")}))
	steps := map[string]func(){
		"conflicts": func() { check(t, Conflicts(ports)) },
		"rules":     func() { ruleset(w.desired(ports, held)) },
		"publish":   func() { check(t, w.Publish(t.Context(), ports)) },
		"again":     func() { check(t, w.Publish(t.Context(), ports[1:])) },
	}
	for _, name := range []string{"conflicts", "rules", "publish", "again"} {
		start := processorTime(t)
		steps[name]()
		took := processorTime(t) - start
		t.Logf("%d ports of %d workloads: %s took %s", len(ports), workloads, name, took)
		if took > stepMax {
			t.Errorf("%s took %s", name, took)
		}
	}
	reaches(t, w.lan, box4+":2001", "web")
	reaches(t, w.lan, "["+box6+"]:2063", "web")
	check(t, w.Publish(t.Context(), nil))
}

// stepMax is ten times what a step takes with the race detector.
const stepMax = 20 * time.Second

// processorTime is what this process has used.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var use unix.Rusage
	check(t, unix.Getrusage(unix.RUSAGE_SELF, &use))
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
