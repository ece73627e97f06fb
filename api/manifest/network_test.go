package manifest

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	capsulev1 "capsule/api/capsule/v1"
)

func decodeWith(t *testing.T, add string) (*capsulev1.Object, error) {
	t.Helper()
	objs, err := Decode("f", strings.NewReader(base+add+"\n"))
	if err != nil {
		return nil, err
	}
	return objs[0], nil
}

// A network and a port have one spelling, however they were written.
func TestNetworkIsReadBack(t *testing.T) {
	for in, want := range map[string]string{
		"network: host":                                                   "network: host\n",
		"network: {mode: host}":                                           "network: host\n",
		"network: {mode: bridge, lan: allow}":                             "network: bridge\n",
		"network: {lan: deny}":                                            "network:\n  mode: bridge\n  lan: deny\n",
		"network:\n  lan: deny\n  mode: bridge":                           "network:\n  mode: bridge\n  lan: deny\n",
		"ports: ['8000-8100:8000-8100/udp']":                              "ports:\n  - \"8000-8100:8000-8100/udp\"\nnetwork: bridge\n",
		"ports: ['[::1]:8000-8001:9000-9001']":                            "ports:\n  - \"[::1]:8000-8001:9000-9001\"\nnetwork: bridge\n",
		"ports: ['80-80:81-81']":                                          "ports:\n  - \"80:81\"\nnetwork: bridge\n",
		"ports: [{hostPort: 80, hostPortEnd: 90, port: 80, portEnd: 90}]": "ports:\n  - \"80-90:80-90\"\nnetwork: bridge\n",
		"ports: [{hostPort: 80, port: 80, from: any}]":                    "ports:\n  - \"80:80\"\nnetwork: bridge\n",
		"ports: [{hostPort: 80, port: 80, from: lan}]":                    "ports:\n  - hostPort: 80\n    port: 80\n    protocol: tcp\n    from: lan\nnetwork: bridge\n",
		"ports: [{hostPort: 80, port: 80, from: 192.0.2.7/32}]":           "ports:\n  - hostPort: 80\n    port: 80\n    protocol: tcp\n    from: \"192.0.2.7\"\nnetwork: bridge\n",
		"ports: [{hostPort: 80, port: 80, from: '2001:DB8:0::/48'}]":      "ports:\n  - hostPort: 80\n    port: 80\n    protocol: tcp\n    from: \"2001:db8::/48\"\nnetwork: bridge\n",
		"network: host\nports: [9100:9100]":                               "ports:\n  - \"9100:9100\"\nnetwork: host\n",
	} {
		o, err := decodeWith(t, in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		Default(o)
		text, err := Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), "image: web\n")
		rest, _, _ = strings.Cut(rest, "resources:")
		if diff := cmp.Diff(want, rest); diff != "" {
			t.Errorf("%s: %s", in, diff)
		}
		again, err := Decode("f", strings.NewReader(string(text)))
		if err == nil {
			Default(again[0])
		}
		if err != nil || !proto.Equal(again[0], o) {
			t.Errorf("%s: read back: %v, %v", in, again, err)
		}
	}
}

// Undecoded objects of a client are written so that they are read back, too.
func TestNetworkOfAClient(t *testing.T) {
	o, err := decodeWith(t, "")
	if err != nil {
		t.Fatal(err)
	}
	o.GetWorkload().Spec.Lan = "allow"
	text, err := Encode(o)
	if err != nil || !strings.Contains(string(text), "network:\n  lan: allow\n") {
		t.Errorf("%s, %v", text, err)
	}
	o.GetWorkload().Spec.Lan = "maybe"
	if err := Validate(o); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	o.GetWorkload().Spec.Lan = ""
	for _, p := range []*capsulev1.Port{
		{HostPort: 80, HostPortEnd: 1 << 20, Port: 80, PortEnd: 1 << 20},
		{HostPort: 0, HostPortEnd: 5, Port: 0, PortEnd: 5},
		{HostPort: 80, HostPortEnd: 90, Port: 80},
		{HostPort: 80, Port: 80, From: "::ffff:192.0.2.1"},
	} {
		o.GetWorkload().Spec.Ports = []*capsulev1.Port{p}
		if err := Validate(o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", p, err)
		}
	}
}

func TestNetworkDiff(t *testing.T) {
	open, err := decodeWith(t, "network: bridge")
	if err != nil {
		t.Fatal(err)
	}
	denied, err := decodeWith(t, "network: {mode: bridge, lan: deny}")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("-network: bridge\n+network:\n+  mode: bridge\n+  lan: deny\n", Diff(open, denied)); diff != "" {
		t.Error(diff)
	}
}

func TestNetworkRefused(t *testing.T) {
	for _, c := range []struct{ add, want string }{
		{"lan: deny", `f:4:1: unknown field "lan"; it belongs under "network"`},
		{"network: {mode: brigde}", `f:4:17: unknown network "brigde"; did you mean "bridge"?`},
		{"network: {lan: denied}", `f:4:16: network.lan: unknown word "denied"; did you mean "deny"?`},
		{"network: {lna: deny}", `f:4:11: unknown field "lna"; did you mean "lan"?`},
		{"network: {lan: deny, lan: allow}", `f:4:22: field "lan" is given twice, first in line 4`},
		{"network: {lan: }", `f:4:16: network.lan has no value; give one or remove the line`},
		{"network: [bridge]", `f:4:10: network: want text, found a list`},
		{"network: {mode: host, lan: deny}", `f:4:28: network.lan: with network "host" the workload is the capsule itself on the LAN; use bridge`},
		{"network: {mode: none, lan: deny}", `f:4:28: network.lan: with network "none" the workload reaches nothing at all; remove it`},
		{"ports: ['8000-8100:80']", `f:4:9: ports[0]: 8000-8100 are 101 ports and 80 are 1; want as many`},
		{"ports: ['80:8000-8100']", `f:4:9: ports[0]: 80 are 1 ports and 8000-8100 are 101; want as many`},
		{"ports: ['8000-8100:8000-8101']", `f:4:9: ports[0]: 8000-8100 are 101 ports and 8000-8101 are 102; want as many`},
		{"ports: ['8100-8000:8100-8000']", `f:4:9: ports[0].hostPortEnd must be within 8100 and 65535
f:4:9: ports[0].portEnd must be within 8100 and 65535`},
		{"ports: ['8000-:8000-8100']", `f:4:9: ports[0]: want a port as a decimal number, found ""`},
		{"ports: ['8000-8100-8200:8000-8100']", `f:4:9: ports[0]: want a port as a decimal number, found "8100-8200"`},
		{"ports: ['8000-70000:8000-70000']", `f:4:9: ports[0]: port 70000 is not within 1 to 65535`},
		{"ports: ['8000-8100:8000-8100', '8100:80']", `f:4:32: ports[1] publishes 8100/tcp, which ports[0] does already`},
		{"ports: ['49000-51000:49000-51000']", `f:4:9: ports[0]: port 50000/tcp is the capsule's own API`},
		{"ports: ['10000-30000:20000-40000']", `f:4:8: more than 16384 ports are in ranges that lead to other numbers; want a range that leads to itself`},
		{"ports: [{hostPort: 80, port: 80, from: wan}]", `f:4:40: ports[0].from: "wan" is none of any, lan, an address such as 192.168.1.7 or a network such as 192.168.1.0/24`},
		{"ports: [{hostPort: 80, port: 80, from: 192.168.1.7/24}]", `f:4:40: ports[0].from: 192.168.1.7/24 is an address within its network; want 192.168.1.0/24, or 192.168.1.7 alone`},
		{"ports: [{hostPort: 80, port: 80, address: 192.168.1.5, from: '2001:db8::/32'}]", `f:4:62: ports[0].from: nobody of 2001:db8::/32 can connect to 192.168.1.5, which is of the other family`},
		{"network: host\nports: [8080:80]", `f:5:9: ports[0]: with network "host" the workload's ports are the capsule's own: want port 8080, the same as hostPort`},
	} {
		_, err := decodeWith(t, c.add)
		if err == nil {
			t.Errorf("%s: accepted", c.add)
			continue
		}
		if diff := cmp.Diff(c.want, err.Error()); diff != "" {
			t.Errorf("%s: %s", c.add, diff)
		}
	}
}
