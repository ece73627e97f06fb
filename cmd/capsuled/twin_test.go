package main

import (
	"net/netip"
	"testing"
)

func TestElsewhere(t *testing.T) {
	ours := []netip.Prefix{netip.MustParsePrefix("192.168.1.20/24"), netip.MustParsePrefix("fd00::20/64")}
	for said, want := range map[string]string{
		"192.168.1.20": "", "192.168.1.21": "192.168.1.21", "fd00::21": "", "fe80::1": "",
	} {
		got := elsewhere([]netip.Addr{netip.MustParseAddr("192.168.1.20"), netip.MustParseAddr(said)}, ours)
		if got.IsValid() != (want != "") || want != "" && got.String() != want {
			t.Errorf("%s: %v", said, got)
		}
	}
}
