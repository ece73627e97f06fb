package uplink

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

func TestLeaseOf(t *testing.T) {
	sent := time.Now()
	old := &Lease{Address: netip.MustParsePrefix("192.0.2.5/25"), Server: netip.MustParseAddr("192.0.2.2")}
	opt := func(code dhcpv4.OptionCode, b ...byte) dhcpv4.Modifier { return dhcpv4.WithGeneric(code, b) }
	seconds := func(code dhcpv4.OptionCode, s uint32) dhcpv4.Modifier {
		return dhcpv4.WithGeneric(code, binary.BigEndian.AppendUint32(nil, s))
	}
	bound := func(change func(*Lease)) *Lease {
		l := &Lease{Address: netip.MustParsePrefix("192.0.2.5/24"), Acquired: sent, Renew: 30 * time.Minute, Rebind: 3150 * time.Second, Expiry: time.Hour}
		change(l)
		return l
	}
	for _, test := range []struct {
		name string
		old  *Lease
		mods []dhcpv4.Modifier
		want *Lease
	}{
		{"bare", nil, nil, bound(func(*Lease) {})},
		{"bare renewal", old, nil, bound(func(l *Lease) { l.Address, l.Server = old.Address, old.Server })},
		{"times", nil, []dhcpv4.Modifier{seconds(dhcpv4.OptionIPAddressLeaseTime, 1000), seconds(dhcpv4.OptionRenewTimeValue, 400), seconds(dhcpv4.OptionRebindingTimeValue, 900)},
			bound(func(l *Lease) { l.Renew, l.Rebind, l.Expiry = 400*time.Second, 900*time.Second, 1000*time.Second })},
		{"times out of order", nil, []dhcpv4.Modifier{seconds(dhcpv4.OptionIPAddressLeaseTime, 800), seconds(dhcpv4.OptionRenewTimeValue, 900), seconds(dhcpv4.OptionRebindingTimeValue, 800)},
			bound(func(l *Lease) { l.Renew, l.Rebind, l.Expiry = 350*time.Second, 700*time.Second, 800*time.Second })},
		{"lease of no time", nil, []dhcpv4.Modifier{seconds(dhcpv4.OptionIPAddressLeaseTime, 0)},
			bound(func(l *Lease) { l.Renew, l.Rebind, l.Expiry = 5*time.Second, 8750*time.Millisecond, leaseMin })},
		{"no use", nil, []dhcpv4.Modifier{opt(dhcpv4.OptionInterfaceMTU, 0, 0), opt(dhcpv4.OptionRouter, 0, 0, 0, 0), opt(dhcpv4.OptionDomainNameServer, 127, 0, 0, 53),
			opt(dhcpv4.OptionDomainName, []byte("a\nnameserver 192.0.2.66")...)}, bound(func(*Lease) {})},
		{"no address", nil, []dhcpv4.Modifier{dhcpv4.WithYourIP(net.IPv4zero)}, nil},
		{"multicast address", nil, []dhcpv4.Modifier{dhcpv4.WithYourIP(net.IPv4(224, 0, 0, 5))}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			ack, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IPv4(192, 0, 2, 5))}, test.mods...)...)
			if err != nil {
				t.Fatal(err)
			}
			got, err := leaseOf(ack, test.old, sent)
			if (err == nil) != (test.want != nil) {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What a hostile server sends never breaks what follows from it.
func FuzzLeaseOf(f *testing.F) {
	ack, err := dhcpv4.New(dhcpv4.WithYourIP(net.IPv4(192, 0, 2, 5)), dhcpv4.WithLeaseTime(3600), dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithOption(dhcpv4.OptDNS(net.IPv4(192, 0, 2, 1))), dhcpv4.WithOption(dhcpv4.OptDomainName("home.example")))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ack.ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		l, err := leaseOf(m, nil, time.Now())
		if err != nil {
			return
		}
		if !(0 < l.Renew && l.Renew < l.Rebind && l.Rebind < l.Expiry) || !l.Address.IsValid() || l.Domain != domain(l.Domain) || len(l.DNS) > serversMax {
			t.Errorf("%+v", l)
		}
	})
}

func rdnssMessage(link int32, lifetime uint32, servers ...string) []byte {
	b := make([]byte, userOptLen)
	b[0] = 10 // AF_INET6
	binary.NativeEndian.PutUint32(b[4:], uint32(link))
	b = append(b, optionRDNSS, byte(1+2*len(servers)), 0, 0)
	b = binary.BigEndian.AppendUint32(b, lifetime)
	for _, s := range servers {
		b = append(b, netip.MustParseAddr(s).AsSlice()...)
	}
	return b
}

func TestRDNSS(t *testing.T) {
	now := time.Now()
	r := rdnss{}
	learn := func(b []byte) {
		t.Helper()
		a, ok := parseRDNSS(b)
		if !ok {
			t.Fatal("not understood")
		}
		r.learn(a, now)
	}
	learn(rdnssMessage(3, 600, "2001:db8::53", "2001:db8::54"))
	learn(rdnssMessage(3, 1200, "2001:db8::54"))
	learn(rdnssMessage(4, 600, "fe80::1"))
	want := func(link int, at time.Time, servers ...string) {
		t.Helper()
		var list []netip.Addr
		for _, s := range servers {
			list = append(list, netip.MustParseAddr(s))
		}
		if diff := cmp.Diff(list, r.of(link, at), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
	}
	want(3, now, "2001:db8::53", "2001:db8::54")
	want(4, now, "fe80::1%4")
	if next := r.next(now); next != 600*time.Second {
		t.Errorf("next %s", next)
	}
	want(3, now.Add(700*time.Second), "2001:db8::54")
	learn(rdnssMessage(3, 0, "2001:db8::54"))
	want(3, now, "2001:db8::53")
}

func FuzzRDNSS(f *testing.F) {
	f.Add(rdnssMessage(3, 600, "2001:db8::53"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok := parseRDNSS(b); ok && (a.lifetime < 0 || len(a.servers) > len(b)/16) {
			t.Errorf("%+v", a)
		}
	})
}

func TestMemory(t *testing.T) {
	m := memory{filepath.Join(t.TempDir(), "uplink", "eth0.json")}
	const hardware = "02:00:00:00:00:01"
	if m.load(hardware) != nil {
		t.Error("a lease out of nothing")
	}
	l := grant("192.0.2.5/24", time.Hour)
	l.Acquired = l.Acquired.Add(-10 * time.Minute)
	if err := m.save(hardware, l); err != nil {
		t.Fatal(err)
	}
	got := m.load(hardware)
	if got == nil || got.Address != l.Address || got.Acquired.Sub(l.Acquired).Abs() > time.Second {
		t.Errorf("%+v, want %+v", got, l)
	}
	if m.load("02:00:00:00:00:02") != nil {
		t.Error("the lease of other hardware")
	}
	l.Acquired = l.Acquired.Add(-time.Hour)
	if err := m.save(hardware, l); err != nil {
		t.Fatal(err)
	}
	if m.load(hardware) != nil {
		t.Error("a lease that ran out")
	}
	if err := os.WriteFile(m.path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if m.load(hardware) != nil {
		t.Error("a damaged lease")
	}
	for range 2 {
		if err := m.save(hardware, nil); err != nil {
			t.Fatal(err)
		}
	}
}
