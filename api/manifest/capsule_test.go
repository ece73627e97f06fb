package manifest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	capsulev1 "capsule/api/capsule/v1"
)

const capsuleText = `kind: Capsule
name: capsule
hostname: attic
network:
  links:
    - link: enp1s0
      addresses:
        - "192.168.1.10/24"
        - "fd00::10/64"
      gateways:
        - "192.168.1.1"
        - "fe80::1"
      autoconf: false
    - link: "52:54:00:12:34:56"
      dhcp: false
  dns:
    - "192.168.1.1"
  domain: home.example.org
ntp:
  - ntp.example.org
  - "192.168.1.1"
registries:
  - name: docker.io
    mirrors:
      - mirror.lan:5000
  - name: mirror.lan:5000
    plainHTTP: true
  - name: registry.example.org
    username: puller
    password: registries/example
logs:
  maxSize: 1MiB
  maxFiles: 8
pool:
  warn: 70
  limit: 85
  overcommit: 200
kernelArguments:
  - "console=ttyS1,115200n8"
  - "intel_iommu=on"
  - "mitigations=auto,nosmt"
  - nomodeset
  - "usbcore.quirks=0bda:8153:k"
`

func TestCapsule(t *testing.T) {
	// Its name may be left out, and the kind may stand last.
	for _, source := range []string{capsuleText, strings.Replace(capsuleText, "name: capsule\n", "", 1), strings.TrimPrefix(capsuleText, "kind: Capsule\n") + "kind: Capsule\n"} {
		objs, err := Decode("f", strings.NewReader(source))
		if err != nil {
			t.Fatal(err)
		}
		Default(objs[0])
		if err := Validate(objs[0]); err != nil {
			t.Error(err)
		}
		text, err := Encode(objs[0])
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(capsuleText, string(text)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if objs, err := Decode("f", strings.NewReader("kind: Capsule\n")); err != nil || objs[0].Meta.Name != CapsuleName || objs[0].GetCapsule().GetSpec() == nil {
		t.Errorf("an empty one is %v, %v", objs, err)
	}
}

func TestCapsuleSpelling(t *testing.T) {
	got := &capsulev1.Object{Meta: &capsulev1.Meta{Kind: KindCapsule}, Kind: &capsulev1.Object_Capsule{Capsule: &capsulev1.Capsule{Spec: &capsulev1.CapsuleSpec{
		Network: &capsulev1.CapsuleNetwork{
			Links: []*capsulev1.LinkSpec{{Link: "52-54-00-AB-CD-EF", Addresses: []string{"FD00:0::10/64", "10.0.0.2/8"}, Gateways: []string{"FE80::1"}}},
			Dns:   []string{"2001:DB8::0053"},
		},
		Ntp:        []string{"2001:DB8::7b", "ntp.lan"},
		Registries: []*capsulev1.RegistrySpec{{Name: "Index.Docker.io", Mirrors: []string{"Mirror.lan:5000"}}},
	}}}}
	Default(got)
	want := &capsulev1.Object{Meta: &capsulev1.Meta{Kind: KindCapsule, Name: CapsuleName}, Kind: &capsulev1.Object_Capsule{Capsule: &capsulev1.Capsule{Spec: &capsulev1.CapsuleSpec{
		Network: &capsulev1.CapsuleNetwork{
			Links: []*capsulev1.LinkSpec{{Link: "52:54:00:ab:cd:ef", Addresses: []string{"fd00::10/64", "10.0.0.2/8"}, Gateways: []string{"fe80::1"}}},
			Dns:   []string{"2001:db8::53"},
		},
		Ntp:        []string{"2001:db8::7b", "ntp.lan"},
		Registries: []*capsulev1.RegistrySpec{{Name: "docker.io", Mirrors: []string{"mirror.lan:5000"}}},
	}}}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if err := Validate(got); err != nil {
		t.Error(err)
	}
	again := proto.CloneOf(got)
	Default(again)
	if !proto.Equal(got, again) {
		t.Errorf("spelled anew: %v", again)
	}
}

// A line of a manifest that is refused, and a piece of what is said.
func TestCapsuleRefused(t *testing.T) {
	link := func(lines string) string { return "network: {links: [{" + lines + "}]}" }
	for line, want := range map[string]string{
		"name: attic":                          `there is one object of kind Capsule, and it is called "capsule"`,
		"hostname: Attic":                      `hostname "Attic" must be lower-case letters`,
		"hostname: attic.lan":                  `want the first part only`,
		"hostname: -attic":                     `with no "-" at its ends`,
		"hostname: \"10\"":                     `must have a letter`,
		"hostname: localhost":                  `everybody's own`,
		"hostname: " + strings.Repeat("a", 64): `longer than 63`,
		"image: web:1":                         `unknown field "image"`,

		link("addresses: [192.168.1.10]"):                                `lacks the length of its network's prefix, as in "192.168.1.10/24"`,
		link("addresses: [192.168.1.0/24]"):                              `is the network itself`,
		link("addresses: [192.168.1.255/24]"):                            `broadcast address`,
		link("addresses: [192.168.1/24]"):                                `is no address with a prefix`,
		link("addresses: [127.0.0.1/8]"):                                 `no address that a link can have`,
		link("addresses: [224.0.0.1/24]"):                                `no address that a link can have`,
		link("addresses: [\"fe80::1/64\"]"):                              `which each link has by itself`,
		link("addresses: [\"::ffff:10.0.0.1/120\"]"):                     `is no address with a prefix`,
		link("addresses: [10.0.0.2/24, 10.0.0.2/16]"):                    `10.0.0.2 is given in network.links[0].addresses[0] already`,
		link("addresses: [10.0.0.2/24], dhcp: true"):                     `has no other by DHCP`,
		link("link: enp1s0/x"):                                           `is no name of a link`,
		link("link: enp1s0}, {link: enp1s0"):                             `"enp1s0" has an entry already`,
		link("dhcp: false}, {link: enp1s0"):                              `network.links[0].link is missing`,
		link("gateways: [192.168.1.1]"):                                  `needs a fixed address of its family`,
		link("addresses: [10.0.0.2/24], gateways: [192.168.1.1]"):        `in the network of none of the link's addresses`,
		link("addresses: [10.0.0.2/24], gateways: [10.0.0.2]"):           `this link's own address`,
		link("addresses: [10.0.0.2/24], gateways: [10.0.0.1, 10.0.0.3]"): `10.0.0.3 is a second one`,
		link("addresses: [10.0.0.2/24], gateways: [router]"):             `"router" is no address of a router`,
		link("addresses: [10.0.0.2/24], gateway: 10.0.0.1"):              `did you mean "gateways"?`,
		link("dhcp: maybe"):                                              `want true or false`,
		"network: {dns: [one.one.one.one]}":                              `network.dns[0]: "one.one.one.one" is no address`,
		"network: {dns: [127.0.0.53]}":                                   `no address of a server`,
		"network: {dns: [1.1.1.1, 1.1.1.1]}":                             `given twice`,
		"network: {dns: [1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4, 1.1.1.5, 1.1.1.6, 1.1.1.7, 1.1.1.8, 1.1.1.9]}": `more than 8`,
		"network: {domain: \"-lan\"}": `is no domain`,
		"network: host":               `want fields`,
		"ntp: [\"no name\"]":          `neither a name nor an address`,
		"ntp: [0.0.0.0]":              `no address of a server`,

		"registries: [{mirrors: [a.lan]}]":                             `registries[0].name is missing`,
		"registries: [{name: \"http://a.lan\"}]":                       `is not HOST or HOST:PORT`,
		"registries: [{name: a.lan/team}]":                             `is not HOST or HOST:PORT`,
		"registries: [{name: docker.io}, {name: index.docker.io}]":     `"docker.io" has an entry already`,
		"registries: [{name: a.lan, mirrors: [a.lan]}]":                `is the registry itself`,
		"registries: [{name: a.lan, mirrors: [b.lan, b.lan]}]":         `given twice`,
		"registries: [{name: a.lan, mirrors: [\"http://b.lan\"]}]":     `an entry of its own with plainHTTP`,
		"registries: [{name: a.lan, username: me}]":                    `one of them is missing`,
		"registries: [{name: a.lan, username: me, password: hunter2}]": `a password never stands in a manifest`,
		"registries: [{name: a.lan, ca: hello}]":                       `no PEM certificate in it`,
		"registries: [{name: a.lan, plainHTTP: true, ca: hello}]":      `without TLS there is no certificate`,
		"registries: [{name: a.lan, insecure: true}]":                  `unknown field "insecure"`,

		"logs: {maxSize: 1KiB}":     `within 64KiB and 1GiB`,
		"logs: {maxFiles: 1}":       `within 2 and 100`,
		"logs: {maxSize: 10}":       `"10" has no unit`,
		"pool: {warn: 40}":          `within 50 and 94 percent`,
		"pool: {warn: 95}":          `must be above pool.warn (95 percent)`,
		"pool: {limit: 80}":         `pool.limit (80 percent) must be above pool.warn (80 percent)`,
		"pool: {limit: 96}":         `at most 95 percent`,
		"pool: {overcommit: 99}":    `within 100 and 100000 percent`,
		"pool: {overcommit: 100.5}": `want a decimal number`,

		"kernelArguments: [panic=0]":                     `not on the list of safe arguments`,
		"kernelArguments: [init=/bin/sh]":                `not on the list of safe arguments`,
		"kernelArguments: [capsule.verity=00]":           `not on the list of safe arguments`,
		"kernelArguments: [\"nomodeset init=/bin/sh\"]":  `not on the list of safe arguments`,
		"kernelArguments: [\"loglevel=7 init=/bin/sh\"]": `want loglevel=0 to 7`,
		"kernelArguments: [\"console=ttyS0\\npanic=0\"]": `want console=`,
		"kernelArguments: [mitigation=off]":              `did you mean "mitigations"?`,
		"kernelArguments: [nomodeset=1]":                 `takes no value`,
		"kernelArguments: [intel_iommu]":                 `want intel_iommu=on or off`,
		"kernelArguments: [nosmt, nosmt]":                `given twice`,
		"kernelArguments: []":                            `an empty list replaces nothing`,
		"kernelArguments: nomodeset":                     `want a list`,
		"kernelArguments: [" + manyArguments(60) + "]":   `at most 1024 fit`,
	} {
		_, err := Decode("f", strings.NewReader("kind: Capsule\n"+line+"\n"))
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\nwant %s\n got %v", line, want, err)
		}
	}
}

func manyArguments(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("\"usbcore.quirks=0bda:%04x:k\"", i))
	}
	return strings.Join(list, ", ")
}

// The server checks what any client sends by the same rules.
func TestCapsuleOfAnyClient(t *testing.T) {
	for name, o := range map[string]*capsulev1.Object{
		"no spec":    {Meta: &capsulev1.Meta{Kind: KindCapsule, Name: CapsuleName}},
		"other name": {Meta: &capsulev1.Meta{Kind: KindCapsule, Name: "attic"}, Kind: &capsulev1.Object_Capsule{Capsule: &capsulev1.Capsule{Spec: &capsulev1.CapsuleSpec{}}}},
		"other spec": {Meta: &capsulev1.Meta{Kind: KindCapsule, Name: CapsuleName}, Kind: &capsulev1.Object_Volume{Volume: &capsulev1.Volume{Spec: &capsulev1.VolumeSpec{}}}},
	} {
		if err := Validate(o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever text comes as an argument, one that is let through is one word of the
// kernel's command line and starts with a name of the list.
func FuzzKernelArgument(f *testing.F) {
	for _, text := range []string{"nomodeset", "console=ttyS0,115200", "usbcore.quirks=0bda:8153:k", "mitigations=off\x00", "libata.force=1:noncq,nodma"} {
		f.Add(text)
	}
	names, _ := KernelArguments()
	f.Fuzz(func(t *testing.T, text string) {
		if kernelProblem(text) != "" {
			return
		}
		name, _, _ := strings.Cut(text, "=")
		known := false
		for _, n := range names {
			known = known || n == name
		}
		if !known || len(strings.Fields(text)) != 1 || strings.ContainsAny(text, "\"'\x00 \t\n\\") {
			t.Errorf("%q is let through", text)
		}
	})
}

// The page has the list that is checked, and the bounds.
func TestManualOfCapsule(t *testing.T) {
	var rows []string
	names, forms := KernelArguments()
	for i, name := range names {
		rows = append(rows, fmt.Sprintf("| `%s` | %s |", name, forms[i]))
	}
	quotes(t, "configuration.md", append(rows,
		fmt.Sprintf("the name, at most %d lower-case letters", HostnameMax),
		fmt.Sprintf("links that are not as by default; at most %d |", linksMax),
		fmt.Sprintf("`192.168.1.10/24`; at most %d |", addressesMax),
		fmt.Sprintf("addresses of name servers, at most %d |", serversMax),
		fmt.Sprintf("names or addresses, at most %d;", serversMax),
		fmt.Sprintf("in order; at most %d.", mirrorsMax),
		fmt.Sprintf("| `%s` | of one file, `%s` to `%s` |", FormatSize(LogSize), FormatSize(LogSizeMin), FormatSize(LogSizeMax)),
		fmt.Sprintf("| `%d` | files of a workload, %d to %d.", LogFiles, LogFilesMin, LogFilesMax),
		fmt.Sprintf("| `%d` | used, from which on it is told; %d to %d |", PoolWarn, PoolWarnMin, PoolLimitMax-1),
		fmt.Sprintf("| `%d` | used, from which on nothing is made that would need more; at most %d |", PoolLimit, PoolLimitMax),
		fmt.Sprintf("| `%d` | of the pool's size that volumes may promise together, %d to %d |", PoolOvercommit, PoolOvercommitMin, PoolOvercommitMax),
	))
}
