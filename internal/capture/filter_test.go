package capture

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/bpf"
)

// frame is an Ethernet frame of the layers above it.
func frame(t testing.TB, above ...gopacket.SerializableLayer) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
	switch above[0].(type) {
	case *layers.IPv4:
		eth.EthernetType = layers.EthernetTypeIPv4
	case *layers.IPv6:
		eth.EthernetType = layers.EthernetTypeIPv6
	case *layers.ARP:
		eth.EthernetType = layers.EthernetTypeARP
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, append([]gopacket.SerializableLayer{eth}, above...)...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func ip(from, to string, protocol layers.IPProtocol) gopacket.SerializableLayer {
	if a := net.ParseIP(from).To4(); a != nil {
		return &layers.IPv4{Version: 4, TTL: 64, SrcIP: a, DstIP: net.ParseIP(to).To4(), Protocol: protocol}
	}
	return &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: net.ParseIP(from), DstIP: net.ParseIP(to), NextHeader: protocol}
}

func frames(t testing.TB) map[string][]byte {
	withOptions := ip("10.0.0.1", "10.0.0.2", layers.IPProtocolTCP).(*layers.IPv4)
	withOptions.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 0}}
	piece := ip("10.0.0.1", "10.0.0.2", layers.IPProtocolUDP).(*layers.IPv4)
	piece.FragOffset = 100
	text := gopacket.Payload("four and twenty blackbirds")
	return map[string][]byte{
		"web":     frame(t, ip("10.0.0.1", "10.0.0.2", layers.IPProtocolTCP), &layers.TCP{SrcPort: 40000, DstPort: 80}, text),
		"web6":    frame(t, ip("fd00::1", "fd00::2", layers.IPProtocolTCP), &layers.TCP{SrcPort: 40000, DstPort: 80}, text),
		"options": frame(t, withOptions, &layers.TCP{SrcPort: 40000, DstPort: 80}, text),
		"dns":     frame(t, ip("10.0.0.1", "10.0.1.53", layers.IPProtocolUDP), &layers.UDP{SrcPort: 5353, DstPort: 53}, text),
		"piece":   frame(t, piece, gopacket.Payload([]byte{0, 53, 0, 53}), text), // looks like port 53
		"ping":    frame(t, ip("10.0.0.1", "10.0.0.2", layers.IPProtocolICMPv4), text),
		"ping6":   frame(t, ip("fd00::1", "fd00::2", layers.IPProtocolICMPv6), text),
		"who": frame(t, &layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
			SourceHwAddress: make([]byte, 6), SourceProtAddress: []byte{10, 0, 0, 1}, DstHwAddress: make([]byte, 6), DstProtAddress: []byte{10, 0, 0, 9}}),
	}
}

// takes runs a filter as the kernel does.
func takes(t testing.TB, n node, data []byte) bool {
	t.Helper()
	code, err := program(n)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bpf.Assemble(code); err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	got, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return got > 0
}

func TestFilter(t *testing.T) {
	all := frames(t)
	for filter, want := range map[string]string{
		"":                                "dns options piece ping ping6 web web6 who",
		"tcp":                             "options web web6",
		"udp":                             "dns piece",
		"icmp":                            "ping",
		"icmp6":                           "ping6",
		"arp":                             "who",
		"ip":                              "dns options piece ping web",
		"ip6":                             "ping6 web6",
		"port 80":                         "options web web6",
		"src port 80":                     "",
		"dst port 80":                     "options web web6",
		"port 53":                         "dns",
		"udp port 40000":                  "",
		"tcp port 40000":                  "options web web6",
		"portrange 50-80":                 "dns options web web6",
		"dst portrange 54-79":             "",
		"host 10.0.0.1":                   "dns options piece ping web who",
		"host 10.0.0.9":                   "who",
		"src 10.0.0.2":                    "",
		"dst host 10.0.0.2":               "options piece ping web",
		"10.0.1.53":                       "dns",
		"host fd00::2":                    "ping6 web6",
		"ip6 dst fd00::2":                 "ping6 web6",
		"net 10.0.1.0/24":                 "dns",
		"net 10.0.0.0/23":                 "dns options piece ping web who",
		"net 0.0.0.0/0":                   "dns options piece ping web who",
		"net fd00::/8":                    "ping6 web6",
		"net fd00::/126":                  "ping6 web6",
		"not tcp":                         "dns piece ping ping6 who",
		"! tcp && !udp":                   "ping ping6 who",
		"not (tcp or udp)":                "ping ping6 who",
		"icmp or icmp6 or arp":            "ping ping6 who",
		"tcp and host 10.0.0.1":           "options web",
		"tcp host 10.0.0.1":               "options web",
		"tcp dst port 80 and not ip6":     "options web",
		"(tcp or udp) and net 10.0.0.0/8": "dns options piece web",
		"not not arp":                     "who",
	} {
		n, err := parseFilter(filter)
		if err != nil {
			t.Errorf("%q: %v", filter, err)
			continue
		}
		for name, data := range all {
			wanted := strings.Contains(" "+want+" ", " "+name+" ")
			if got := takes(t, n, data); got != wanted {
				t.Errorf("%q takes %s: %v", filter, name, got)
			}
		}
	}
}

func TestFilterRefused(t *testing.T) {
	for filter, want := range map[string]string{
		"tpc":              `unexpected "tpc"`,
		"port":             "it ends too early",
		"port http":        `"http" is no port`,
		"port 65536":       `"65536" is no port`,
		"port 1-2":         `"1-2" is no port`,
		"portrange 9-8":    `"9-8" is no portrange`,
		"host web":         `"web" is no address`,
		"host fe80::1%lo":  "is no address",
		"net 10.0.0.0":     `"10.0.0.0" is no network`,
		"(tcp":             "a parenthesis is not closed",
		"tcp)":             `unexpected ")"`,
		"tcp and":          "it ends too early",
		"tcp or or udp":    `unexpected "or"`,
		"src":              "it ends too early",
		"not":              "it ends too early",
		"tcp 5 and udp":    `unexpected "5"`,
		"host 10.0.0.1 80": `unexpected "80"`,
		strings.Repeat("(", 100) + "tcp" + strings.Repeat(")", 100):  "more than 32 parts within each other",
		strings.Repeat("not ", 100) + "tcp":                          "more than 32 parts within each other",
		strings.Repeat("a", filterMax+1):                             "at most 1024 characters",
		strings.TrimSuffix(strings.Repeat("port 1 or ", 100), "or "): "too long for the kernel",
	} {
		n, err := parseFilter(filter)
		if err == nil {
			_, err = program(n)
		}
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", filter, err, want)
		}
	}
}

func TestConnection(t *testing.T) {
	n := connection(netip.MustParseAddrPort("[::ffff:10.0.0.1]:40000"), netip.MustParseAddrPort("10.0.0.2:80"))
	back := frame(t, ip("10.0.0.2", "10.0.0.1", layers.IPProtocolTCP), &layers.TCP{SrcPort: 80, DstPort: 40000})
	other := frame(t, ip("10.0.0.1", "10.0.0.2", layers.IPProtocolTCP), &layers.TCP{SrcPort: 40001, DstPort: 80})
	all := frames(t)
	for name, c := range map[string]struct {
		data []byte
		want bool
	}{"there": {all["web"], true}, "back": {back, true}, "another": {other, false}, "udp": {all["dns"], false}, "ipv6": {all["web6"], false}} {
		if got := takes(t, n, c.data); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	six := connection(netip.MustParseAddrPort("[fd00::1]:40000"), netip.MustParseAddrPort("[fd00::2]:80"))
	if !takes(t, six, all["web6"]) || takes(t, six, all["web"]) {
		t.Error("of IPv6")
	}
}

// holds is what a filter says of a packet, part by part.
func holds(t testing.TB, n node, data []byte) bool {
	switch n := n.(type) {
	case all:
		for _, part := range n {
			if !holds(t, part, data) {
				return false
			}
		}
		return true
	case some:
		for _, part := range n {
			if holds(t, part, data) {
				return true
			}
		}
		return false
	case inverse:
		return !holds(t, n.of, data)
	}
	return takes(t, n, data)
}

// FuzzFilter: whatever is asked for, the program is one that a kernel takes, and does
// what its parts say.
func FuzzFilter(f *testing.F) {
	data := frames(f)
	for _, text := range []string{"tcp port 80", "not (src 10.0.0.1 or dst net fd00::/9) and portrange 1-2", "ip6 || ! arp"} {
		f.Add(text, data["web"])
		f.Add(text, data["ping6"])
	}
	f.Fuzz(func(t *testing.T, text string, data []byte) {
		n, err := parseFilter(text)
		if err != nil {
			return
		}
		if _, err := program(n); err != nil {
			return
		}
		data = append(data, make([]byte, 128)...) // within which all that is looked at stands
		if got, want := takes(t, n, data), holds(t, n, data); got != want {
			t.Errorf("%q takes %x: %v, want %v", text, data, got, want)
		}
	})
}
