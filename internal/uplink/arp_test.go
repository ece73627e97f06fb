package uplink

import (
	"net"
	"net/netip"
	"testing"
)

func TestClaims(t *testing.T) {
	ours, other := net.HardwareAddr{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}
	want, elsewhere := netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("192.0.2.9")
	const reply = 2
	for name, test := range map[string]struct {
		m      arp
		claims bool
	}{
		"answer of who has it":         {arp{reply, other, want, elsewhere}, true},
		"question of who has it":       {arp{arpRequest, other, want, elsewhere}, true},
		"announcement":                 {arp{arpRequest, other, want, want}, true},
		"probe of another for it":      {arp{arpRequest, other, netip.IPv4Unspecified(), want}, true},
		"question for it":              {arp{arpRequest, other, elsewhere, want}, false},
		"answer of another":            {arp{reply, other, elsewhere, want}, false},
		"answer without an address":    {arp{reply, other, netip.IPv4Unspecified(), want}, false},
		"our own probe, as we hear it": {arp{arpRequest, [6]byte(ours), netip.IPv4Unspecified(), want}, false},
	} {
		t.Run(name, func(t *testing.T) {
			m, ok := parseARP(test.m.marshal())
			if !ok || m != test.m {
				t.Fatalf("read %+v, %t; written %+v", m, ok, test.m)
			}
			if got := m.claims(want, ours); got != test.claims {
				t.Errorf("claims %t, want %t", got, test.claims)
			}
		})
	}
}

// What anybody on the network sends is read or refused, and read right.
func FuzzParseARP(f *testing.F) {
	m := arp{arpRequest, [6]byte{2, 0, 0, 0, 0, 2}, netip.IPv4Unspecified(), netip.MustParseAddr("192.0.2.5")}
	f.Add(m.marshal())
	f.Add(m.marshal()[:arpLen-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := parseARP(b)
		if !ok {
			return
		}
		if again, ok := parseARP(m.marshal()); !ok || again != m {
			t.Errorf("%x: read %+v, again %+v", b, m, again)
		}
	})
}
