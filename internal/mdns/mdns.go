// Package mdns makes a capsule findable on its own network, and finds capsules:
// DNS-SD (RFC 6763) over multicast DNS (RFC 6762), type _capsule._tcp.
//
// What is said is public: name, id, version, state and the fingerprint of the
// CA. None of it is believed: whoever finds a capsule checks its certificate, or
// proves the code of its console.
//
// Names are the capsule's alone by the machine's id in them, so that two of one
// name never argue on the network, and none has to be probed for.
//
// The responder knows the links that it is given and no others. It never reads a
// packet that came by another one, nor one that was not sent to the group.
package mdns

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"
)

const (
	serviceType = "_capsule._tcp.local."
	typesName   = "_services._dns-sd._udp.local."
	port        = 5353
)

var (
	group4 = &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: port}
	group6 = &net.UDPAddr{IP: net.ParseIP("ff02::fb"), Port: port}
)

// Times that records may be kept, in seconds, as RFC 6762 section 10 has them.
const (
	hostTTL   = 120
	otherTTL  = 4500
	legacyTTL = 10 // of an answer to a plain DNS client
)

// Bounds of what is read.
const (
	packetMax = 9000 // bytes, RFC 6762 section 17
	labelMax  = 63
)

// States of a capsule; a later version may have others.
const (
	Claimed   = "claimed"
	Unclaimed = "unclaimed"
	Installer = "installer"
)

// Service is what a capsule says of itself.
type Service struct {
	Name        string // "capsule-a3f2"
	ID          string // 32 hexadecimal digits
	Version     string
	State       string // Claimed, Unclaimed or Installer
	Fingerprint string // of its CA, "3f2a:91c0:…"
	Port        uint16
}

// Link is a network that the capsule is found on.
type Link struct {
	Index     int
	Name      string
	Addresses []netip.Prefix
}

// instance is the name of the service: the capsule's own, for people who browse,
// and as much of its id as tells it from a namesake.
func (s Service) instance() string {
	id := s.ID[:8]
	name := strings.NewReplacer(".", "-", "\\", "-").Replace(s.Name)
	return name[:min(len(name), labelMax-1-len(id))] + "-" + id + "." + serviceType
}

func (s Service) host() string { return "capsule-" + s.ID + ".local." }

// texts are the TXT record's pairs.
func (s Service) texts() []string {
	return []string{"id=" + s.ID, "name=" + s.Name, "version=" + s.Version, "state=" + s.State, "fp=" + s.Fingerprint}
}

var forms = map[string]*regexp.Regexp{
	"id":      regexp.MustCompile(`^[0-9a-f]{32}$`),
	"name":    regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`),
	"version": regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.+~_-]{0,63}$`),
	"state":   regexp.MustCompile(`^[a-z-]{1,16}$`),
	"fp":      regexp.MustCompile(`^([0-9a-f]{4}:){15}[0-9a-f]{4}$`),
}

// parse reads a TXT record's pairs. Whatever is not of the right form makes all
// of it worthless: it is shown to people, and anybody may have sent it.
func parse(texts []string) (Service, error) {
	values := map[string]string{}
	for _, t := range texts {
		key, value, _ := strings.Cut(t, "=")
		if _, again := values[key]; !again { // the first counts, RFC 6763 section 6.4
			values[key] = value
		}
	}
	for key, form := range forms {
		if !form.MatchString(values[key]) {
			return Service{}, fmt.Errorf("%s %q is not of the form that it has on the network: %w", key, cutValue(values[key]), errdefs.ErrInvalidArgument)
		}
	}
	return Service{Name: values["name"], ID: values["id"], Version: values["version"], State: values["state"], Fingerprint: values["fp"]}, nil
}

func cutValue(s string) string { return s[:min(len(s), 64)] }

// check tells whether it may be said: the finder's rules, applied at the source.
func (s Service) check() error {
	if s.Port == 0 {
		return fmt.Errorf("a capsule without a port can't be found: %w", errdefs.ErrInvalidArgument)
	}
	_, err := parse(s.texts())
	return err
}

// records are all that is said on a link.
func records(s Service, l Link) []dns.RR {
	head := func(name string, kind uint16, ttl uint32) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
	}
	instance, host := s.instance(), s.host()
	all := []dns.RR{
		&dns.PTR{Hdr: head(typesName, dns.TypePTR, otherTTL), Ptr: serviceType},
		&dns.PTR{Hdr: head(serviceType, dns.TypePTR, otherTTL), Ptr: instance},
		&dns.SRV{Hdr: head(instance, dns.TypeSRV, hostTTL), Port: s.Port, Target: host},
		&dns.TXT{Hdr: head(instance, dns.TypeTXT, otherTTL), Txt: s.texts()},
		&dns.NSEC{Hdr: head(instance, dns.TypeNSEC, hostTTL), NextDomain: instance, TypeBitMap: []uint16{dns.TypeTXT, dns.TypeSRV}},
	}
	var v4, v6 []dns.RR
	for _, p := range l.Addresses {
		if a := p.Addr(); a.Is4() {
			v4 = append(v4, &dns.A{Hdr: head(host, dns.TypeA, hostTTL), A: a.AsSlice()})
		} else {
			v6 = append(v6, &dns.AAAA{Hdr: head(host, dns.TypeAAAA, hostTTL), AAAA: a.AsSlice()})
		}
	}
	var kinds []uint16
	if len(v4) > 0 {
		kinds = append(kinds, dns.TypeA)
	}
	if len(v6) > 0 {
		kinds = append(kinds, dns.TypeAAAA)
	}
	all = append(append(all, v4...), v6...)
	return append(all, &dns.NSEC{Hdr: head(host, dns.TypeNSEC, hostTTL), NextDomain: host, TypeBitMap: kinds})
}
