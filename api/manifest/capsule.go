package manifest

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	capsulev1 "capsule/api/capsule/v1"
)

// Limits of what a capsule may declare, and what an absent field means.
const (
	HostnameMax   = 63 // bytes
	linksMax      = 32
	addressesMax  = 16 // of one link
	serversMax    = 8  // of DNS, and of time
	domainMax     = 253
	registriesMax = 64
	mirrorsMax    = 8        // of one registry
	caMax         = 64 << 10 // bytes of certificates of one registry

	LogSize     = 4 << 20 // bytes of one file
	LogSizeMin  = 64 << 10
	LogSizeMax  = 1 << 30
	LogFiles    = 4 // of one workload
	LogFilesMin = 2
	LogFilesMax = 100

	// In percent of the pool.
	PoolWarn          = 80
	PoolWarnMin       = 50
	PoolLimit         = 90
	PoolLimitMax      = 95
	PoolOvercommit    = 1000
	PoolOvercommitMin = 100
	PoolOvercommitMax = 100_000

	fieldHostname  = "hostname"
	fieldNTP       = "ntp"
	fieldDNS       = "network.dns"
	fieldDomain    = "network.domain"
	fieldPool      = "pool"
	dockerRegistry = "docker.io"
)

// defaultCapsule brings names and addresses to their one spelling. What is left out
// stays so: it is as it comes.
func defaultCapsule(m *capsulev1.Meta, s *capsulev1.CapsuleSpec) {
	if m != nil && m.Name == "" {
		m.Name = CapsuleName
	}
	for _, l := range s.GetNetwork().GetLinks() {
		if mac, err := net.ParseMAC(l.GetLink()); err == nil {
			l.Link = mac.String()
		}
		for i, a := range l.GetAddresses() {
			if p, err := netip.ParsePrefix(a); err == nil {
				l.Addresses[i] = p.String()
			}
		}
		spell(l.GetGateways())
	}
	spell(s.GetNetwork().GetDns())
	spell(s.GetNtp())
	for _, r := range s.GetRegistries() {
		r.Name = RegistryHost(r.GetName())
		for i := range r.GetMirrors() {
			r.Mirrors[i] = RegistryHost(r.Mirrors[i])
		}
	}
}

// spell writes those that are addresses in their one spelling.
func spell(list []string) {
	for i, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			list[i] = a.String()
		}
	}
}

// RegistryHost is a registry's name as image references lead to it.
func RegistryHost(name string) string {
	name = strings.ToLower(name)
	switch name {
	case "index.docker.io", "registry-1.docker.io":
		return dockerRegistry
	}
	return name
}

func (c *check) capsule(s *capsulev1.CapsuleSpec) {
	c.hostname(s.GetHostname())
	c.links(s.GetNetwork().GetLinks())
	c.servers(fieldDNS, s.GetNetwork().GetDns(), false)
	if d := s.GetNetwork().GetDomain(); d != "" && !isDomain(d) {
		c.add(fieldDomain, "network.domain %q is no domain such as \"lan\" or \"home.example.org\"", clip(d))
	}
	c.servers(fieldNTP, s.GetNtp(), true)
	c.registries(s.GetRegistries())
	c.logs(s.GetLogs())
	c.pool(s.GetPool())
	c.kernelArguments(s.GetKernelArguments())
}

func (c *check) hostname(name string) {
	switch {
	case name == "":
	case strings.Contains(name, "."):
		c.add(fieldHostname, "hostname %q has a \".\": want the first part only; the rest is network.domain", clip(name))
	case len(name) > HostnameMax:
		c.add(fieldHostname, "hostname %q is longer than %d characters", clip(name), HostnameMax)
	case !label.MatchString(name):
		c.add(fieldHostname, "hostname %q must be %s, with no \"-\" at its ends", clip(name), labelForm)
	case strings.Trim(name, "0123456789-") == "":
		c.add(fieldHostname, "hostname %q must have a letter, or it reads as an address", name)
	case name == "localhost":
		c.add(fieldHostname, "hostname %q is everybody's own", name)
	}
}

var (
	// linkName is what the kernel takes for a link.
	linkName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$`)
	domain   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
)

func isDomain(s string) bool {
	return len(s) <= domainMax && domain.MatchString(s) && strings.Trim(s, "0123456789.") != ""
}

func (c *check) links(links []*capsulev1.LinkSpec) {
	if len(links) > linksMax {
		c.add("network.links", "network.links has more than %d entries", linksMax)
		return
	}
	seen := map[string]bool{}
	taken := map[netip.Addr]string{}
	for i, l := range links {
		at := index("network.links", i)
		switch _, err := net.ParseMAC(l.GetLink()); {
		case l.GetLink() == "" && len(links) > 1:
			c.add(at, "%s.link is missing: with more than one entry each names its link, such as \"enp1s0\" or \"52:54:00:12:34:56\"", at)
		case l.GetLink() != "" && err != nil && !linkName.MatchString(l.GetLink()):
			c.add(at+".link", "%s.link: %q is no name of a link such as \"enp1s0\", and no hardware address such as \"52:54:00:12:34:56\"", at, clip(l.GetLink()))
		case seen[l.GetLink()]:
			c.add(at+".link", "%s.link: %q has an entry already", at, l.GetLink())
		}
		seen[l.GetLink()] = true
		c.link(at, l, taken)
	}
}

func (c *check) link(at string, l *capsulev1.LinkSpec, taken map[netip.Addr]string) {
	if len(l.GetAddresses()) > addressesMax {
		c.add(at+".addresses", "%s.addresses has more than %d entries", at, addressesMax)
		return
	}
	var fixed []netip.Prefix
	for i, text := range l.GetAddresses() {
		here := index(at+".addresses", i)
		p, problem := parseFixed(text)
		switch other := taken[p.Addr()]; {
		case problem != "":
			c.add(here, "%s: %s", here, problem)
		case other != "":
			c.add(here, "%s: %s is given in %s already", here, p.Addr(), other)
		default:
			taken[p.Addr()] = here
			fixed = append(fixed, p)
		}
	}
	if l.GetDhcp() && slices.ContainsFunc(fixed, func(p netip.Prefix) bool { return p.Addr().Is4() }) {
		c.add(at+".dhcp", "%s.dhcp: a link with a fixed IPv4 address has no other by DHCP; remove one of them", at)
	}
	c.gateways(at+".gateways", l.GetGateways(), fixed)
}

// parseFixed reads an address that a link can have for good.
func parseFixed(text string) (netip.Prefix, string) {
	p, err := netip.ParsePrefix(text)
	if a, plain := netip.ParseAddr(text); plain == nil && a.Zone() == "" {
		length := 24
		if a.Is6() {
			length = 64
		}
		return p, fmt.Sprintf("%q lacks the length of its network's prefix, as in \"%s/%d\"", text, a, length)
	}
	if err != nil || p.Addr().Is4In6() {
		return p, fmt.Sprintf("%q is no address with a prefix such as \"192.168.1.10/24\"", clip(text))
	}
	a := p.Addr()
	switch {
	case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || p.Bits() == 0:
		return p, fmt.Sprintf("%s is no address that a link can have", text)
	case a.IsLinkLocalUnicast() && a.Is6():
		return p, fmt.Sprintf("%s is a link-local address, which each link has by itself", text)
	case a.Is4() && p.Bits() < 31 && a == p.Masked().Addr():
		return p, fmt.Sprintf("%s is the network itself; want an address in it", text)
	case a.Is4() && p.Bits() < 31 && a == lastOf(p):
		return p, fmt.Sprintf("%s is the network's broadcast address; want another one", text)
	}
	return p, ""
}

// lastOf is the last address of an IPv4 network.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(b)
}

// gateways are neighbours of a fixed address, or link-local ones.
func (c *check) gateways(at string, list []string, fixed []netip.Prefix) {
	var four, six bool
	for i, text := range list {
		here := index(at, i)
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
			c.add(here, "%s: %q is no address of a router", here, clip(text))
			continue
		}
		same := func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() }
		near := func(p netip.Prefix) bool { return p.Contains(a) || p.IsSingleIP() && same(p) }
		switch {
		case a.Is4() && four || a.Is6() && six:
			c.add(here, "%s: a link has one gateway of each family, and %s is a second one", here, a)
		case slices.ContainsFunc(fixed, func(p netip.Prefix) bool { return p.Addr() == a }):
			c.add(here, "%s: %s is this link's own address", here, a)
		case !slices.ContainsFunc(fixed, same):
			c.add(here, "%s: %s needs a fixed address of its family on the link; without one, routers tell of themselves", here, a)
		case !a.IsLinkLocalUnicast() && !slices.ContainsFunc(fixed, near):
			c.add(here, "%s: %s is in the network of none of the link's addresses", here, a)
		}
		four, six = four || a.Is4(), six || a.Is6()
	}
}

// servers checks a list of addresses, or also names.
func (c *check) servers(at string, list []string, names bool) {
	if len(list) > serversMax {
		c.add(at, "%s has more than %d entries", at, serversMax)
		return
	}
	seen := map[string]bool{}
	for i, s := range list {
		here := index(at, i)
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil && names && !isDomain(s):
			c.add(here, "%s: %q is neither a name nor an address", here, clip(s))
		case err != nil && !names:
			c.add(here, "%s: %q is no address", here, clip(s))
		case err == nil && (a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast()):
			c.add(here, "%s: %q is no address of a server", here, clip(s))
		case seen[s]:
			c.add(here, "%s: %q is given twice", here, s)
		}
		seen[s] = true
	}
}

var (
	// registryName is HOST or HOST:PORT; an IPv6 address stands in brackets.
	registryName = regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(:[0-9]{1,5})?$`)
	secretRef    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*/[A-Za-z0-9._-]+$`)
)

const registryForm = "HOST or HOST:PORT"

func (c *check) registries(list []*capsulev1.RegistrySpec) {
	if len(list) > registriesMax {
		c.add("registries", "registries has more than %d entries", registriesMax)
		return
	}
	seen := map[string]bool{}
	for i, r := range list {
		at := index("registries", i)
		name := RegistryHost(r.GetName())
		switch {
		case name == "":
			c.add(at, "%s.name is missing; want %s", at, registryForm)
		case !registryName.MatchString(name):
			c.add(at+".name", "%s.name: %q is not %s", at, clip(r.GetName()), registryForm)
		case seen[name]:
			c.add(at+".name", "%s.name: %q has an entry already", at, name)
		}
		seen[name] = true
		c.mirrors(at+".mirrors", name, r.GetMirrors())
		c.login(at, r)
		c.authority(at, r)
	}
}

func (c *check) mirrors(at, of string, list []string) {
	if len(list) > mirrorsMax {
		c.add(at, "%s has more than %d entries", at, mirrorsMax)
		return
	}
	seen := map[string]bool{of: true}
	for i, m := range list {
		here := index(at, i)
		switch name := RegistryHost(m); {
		case strings.Contains(m, "://"):
			c.add(here, "%s: %q: want %s; that it is spoken to without TLS is told by an entry of its own with plainHTTP", here, clip(m), registryForm)
		case !registryName.MatchString(name):
			c.add(here, "%s: %q is not %s", here, clip(m), registryForm)
		case name == of:
			c.add(here, "%s: %q is the registry itself", here, name)
		case seen[name]:
			c.add(here, "%s: %q is given twice", here, name)
		default:
			seen[name] = true
		}
	}
}

func (c *check) login(at string, r *capsulev1.RegistrySpec) {
	user, password := r.GetUsername(), r.GetPassword()
	switch {
	case (user == "") != (password == ""):
		c.add(at, "%s: a login is a username and a password; one of them is missing", at)
	case password != "" && !secretRef.MatchString(password):
		c.add(at+".password", "%s.password: want \"SECRET/KEY\", the name of a Secret and of a value in it; a password never stands in a manifest", at)
	}
	if len(user) > envNameMax || badText(user) != "" || strings.ContainsAny(user, ":\n\r") {
		c.add(at+".username", "%s.username is no user's name", at)
	}
}

func (c *check) authority(at string, r *capsulev1.RegistrySpec) {
	switch ca := r.GetCa(); {
	case ca == "":
	case r.GetPlainHttp():
		c.add(at+".ca", "%s.ca: without TLS there is no certificate to check; remove ca or plainHTTP", at)
	case len(ca) > caMax:
		c.add(at+".ca", "%s.ca is longer than %s", at, FormatSize(caMax))
	default:
		if problem := certificatesProblem(ca); problem != "" {
			c.add(at+".ca", "%s.ca: %s", at, problem)
		}
	}
}

// certificatesProblem says why a text is no list of certificates, or "".
func certificatesProblem(text string) string {
	rest := []byte(text)
	for count := 0; ; count++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		switch {
		case block == nil && count == 0:
			return "no PEM certificate in it"
		case block == nil:
			return ""
		case block.Type != "CERTIFICATE":
			return fmt.Sprintf("it has a %q; want certificates only", clip(block.Type))
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Sprintf("certificate %d: %v", count+1, err)
		}
	}
}

func (c *check) logs(l *capsulev1.LogLimits) {
	if size := l.GetMaxSize(); size != 0 && (size < LogSizeMin || size > LogSizeMax) {
		c.add("logs.maxSize", "logs.maxSize must be within %s and %s", FormatSize(LogSizeMin), FormatSize(LogSizeMax))
	}
	if n := l.GetMaxFiles(); n != 0 && (n < LogFilesMin || n > LogFilesMax) {
		c.add("logs.maxFiles", "logs.maxFiles must be within %d and %d", LogFilesMin, LogFilesMax)
	}
}

// PoolLimits are those of a capsule, each with its default.
func PoolLimits(p *capsulev1.PoolLimits) (warn, limit, overcommit uint32) {
	given := func(n, fallback uint32) uint32 {
		if n == 0 {
			return fallback
		}
		return n
	}
	return given(p.GetWarn(), PoolWarn), given(p.GetLimit(), PoolLimit), given(p.GetOvercommit(), PoolOvercommit)
}

func (c *check) pool(p *capsulev1.PoolLimits) {
	warn, limit, overcommit := PoolLimits(p)
	switch {
	case warn < PoolWarnMin || warn > PoolLimitMax:
		c.add(fieldPool+".warn", "pool.warn must be within %d and %d percent", PoolWarnMin, PoolLimitMax-1)
	case limit > PoolLimitMax:
		c.add(fieldPool+".limit", "pool.limit must be at most %d percent: what is above is kept for emergencies", PoolLimitMax)
	case limit <= warn:
		c.add(fieldPool+".limit", "pool.limit (%d percent) must be above pool.warn (%d percent)", limit, warn)
	}
	if overcommit < PoolOvercommitMin || overcommit > PoolOvercommitMax {
		c.add(fieldPool+".overcommit", "pool.overcommit must be within %d and %d percent", PoolOvercommitMin, PoolOvercommitMax)
	}
}
