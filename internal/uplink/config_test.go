package uplink

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
)

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func addresses(list ...string) (all []netip.Addr) {
	for _, s := range list {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func TestConfigOf(t *testing.T) {
	link := func(change func(*v1.LinkSpec)) *v1.CapsuleNetwork {
		l := &v1.LinkSpec{Link: "eth0"}
		change(l)
		return &v1.CapsuleNetwork{Links: []*v1.LinkSpec{l}}
	}
	one := func(l LinkConfig) Config {
		l.Link = "eth0"
		return Config{Links: []LinkConfig{l}}
	}
	for name, test := range map[string]struct {
		in   *v1.CapsuleNetwork
		want Config
	}{
		"nothing":            {nil, Config{}},
		"servers":            {&v1.CapsuleNetwork{Dns: []string{"192.0.2.1", "2001:db8::1"}, Domain: "lan"}, Config{DNS: addresses("192.0.2.1", "2001:db8::1"), Domain: "lan"}},
		"a link as it comes": {link(func(*v1.LinkSpec) {}), one(LinkConfig{})},
		"IPv4 is instead of DHCP": {
			link(func(l *v1.LinkSpec) { l.Addresses, l.Gateways = []string{"192.0.2.5/24"}, []string{"192.0.2.1"} }),
			one(LinkConfig{Addresses: prefixes("192.0.2.5/24"), Gateways: addresses("192.0.2.1"), NoDHCP: true})},
		"IPv6 is beside routers and DHCP": {
			link(func(l *v1.LinkSpec) { l.Addresses = []string{"2001:db8::5/64"} }), one(LinkConfig{Addresses: prefixes("2001:db8::5/64")})},
		"silent": {
			link(func(l *v1.LinkSpec) { l.Dhcp, l.Autoconf = proto.Bool(false), proto.Bool(false) }), one(LinkConfig{NoDHCP: true, NoAdverts: true})},
		"said as it is": {
			link(func(l *v1.LinkSpec) { l.Dhcp, l.Autoconf = proto.Bool(true), proto.Bool(true) }), one(LinkConfig{})},
		"what a newer version checked": {
			link(func(l *v1.LinkSpec) { l.Addresses = []string{"192.0.2.5/24", "auto"} }), one(LinkConfig{Addresses: prefixes("192.0.2.5/24"), NoDHCP: true})},
	} {
		t.Run(name, func(t *testing.T) {
			same := cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}
			if diff := cmp.Diff(test.want, ConfigOf(test.in), same); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	device := func(index int, name, hardware string) netlink.Link {
		mac, err := net.ParseMAC(hardware)
		if err != nil {
			t.Fatal(err)
		}
		return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index, Name: name, HardwareAddr: mac}}
	}
	eth0, eth1 := device(2, "eth0", "52:54:00:00:00:01"), device(3, "eth1", "52:54:00:00:00:02")
	for name, test := range map[string]struct {
		declared []string
		have     []netlink.Link
		want     string // of eth0 and eth1
		missing  string
	}{
		"nothing":                      {nil, []netlink.Link{eth0, eth1}, "|", ""},
		"by name":                      {[]string{"eth1"}, []netlink.Link{eth0, eth1}, "|eth1", ""},
		"by hardware":                  {[]string{"52:54:00:00:00:02"}, []netlink.Link{eth0, eth1}, "|52:54:00:00:00:02", ""},
		"hardware goes before a name":  {[]string{"eth1", "52:54:00:00:00:02"}, []netlink.Link{eth0, eth1}, "|52:54:00:00:00:02", `link "eth1" is not there`},
		"whichever":                    {[]string{""}, []netlink.Link{eth0}, "first|", ""},
		"whichever, and a second came": {[]string{""}, []netlink.Link{eth0, eth1}, "first|", ""},
		"gone":                         {[]string{"eth0", "eth1"}, []netlink.Link{eth1}, "|eth1", `link "eth0" is not there, and what is declared of it waits for it; there is "eth1" (52:54:00:00:00:02)`},
		"none at all":                  {[]string{""}, nil, "|", "no wired one is"},
	} {
		t.Run(name, func(t *testing.T) {
			var c Config
			for _, link := range test.declared {
				c.Links = append(c.Links, LinkConfig{Link: link, Gateways: addresses("192.0.2.1")})
			}
			plan, missing := c.plan(test.have)
			of := func(index int) string {
				if p := plan[index]; p.static() && p.Link == "" {
					return "first"
				}
				return plan[index].Link
			}
			if got := of(2) + "|" + of(3); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if got := strings.Join(missing, "\n"); !strings.Contains(got, test.missing) || (got == "") != (test.missing == "") {
				t.Errorf("missing %q, want %q", got, test.missing)
			}
		})
	}
}
