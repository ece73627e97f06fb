//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/audit"
	"capsule/internal/mdns"
)

// foundCapsule has the digit for its id and its CA's fingerprint.
func foundCapsule(name, digit, state, address string) mdns.Found {
	return mdns.Found{
		Service: mdns.Service{
			Name: name, ID: strings.Repeat(digit, 32), Version: "1.2.0", State: state, Port: 50000,
			Fingerprint: strings.TrimSuffix(strings.Repeat(strings.Repeat(digit, 4)+":", 16), ":"),
		},
		Addresses: []netip.Addr{netip.MustParseAddr(address)},
	}
}

func TestNextSteps(t *testing.T) {
	mine := foundCapsule("home", "a", mdns.Claimed, "192.168.1.2")
	known := map[string]string{mine.Fingerprint: "home"}
	for _, c := range []struct {
		name  string
		found []mdns.Found
		want  []string
	}{
		{"none", nil, nil},
		{"mine", []mdns.Found{mine}, nil},
		{"nobody's", []mdns.Found{foundCapsule("capsule-b", "b", mdns.Unclaimed, "192.168.1.3")}, []string{
			`capsule-b is nobody's yet: "capsulectl claim capsule-b" takes it, with the code on its console`}},
		{"to install", []mdns.Found{foundCapsule("capsule-b", "b", mdns.Installer, "192.168.1.3")}, []string{
			`capsule-b waits to be installed: "capsulectl install capsule-b" goes on, with the code on its console`}},
		{"mine to install", []mdns.Found{foundCapsule("home", "a", mdns.Installer, "192.168.1.2")}, []string{
			`home waits to be installed: "capsulectl install home" goes on`}},
		{"somebody's", []mdns.Found{foundCapsule("capsule-b", "b", mdns.Claimed, "192.168.1.3")}, []string{
			`capsule-b is somebody's: "capsulectl access request" begins to ask one of its admins for access`}},
		{"of a later version", []mdns.Found{foundCapsule("capsule-b", "b", "resting", "192.168.1.3")}, nil},
		{"namesakes", []mdns.Found{foundCapsule("x", "b", mdns.Unclaimed, "192.168.1.3"), foundCapsule("X", "c", mdns.Unclaimed, "fe80::1%eth0")}, []string{
			`x is nobody's yet: "capsulectl claim 192.168.1.3:50000" takes it, with the code on its console`,
			`X is nobody's yet: "capsulectl claim [fe80::1%eth0]:50000" takes it, with the code on its console`}},
		{"one that pretends to be mine", []mdns.Found{foundCapsule("home", "b", mdns.Claimed, "192.168.1.66")}, []string{
			`home is somebody's: "capsulectl access request" begins to ask one of its admins for access`,
			`warning: this home is another capsule than the one of the context home, or was installed anew`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, nextSteps(c.found, known)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFoundView(t *testing.T) {
	mine := foundCapsule("home", "a", mdns.Claimed, "192.168.1.2")
	var out, errs bytes.Buffer
	u := &ui{out: &out, err: &errs}
	v := foundView([]mdns.Found{mine, foundCapsule("capsule-b", "b", mdns.Unclaimed, "192.168.1.3")}, map[string]string{mine.Fingerprint: "mine"})
	if err := u.show(formatTable, v); err != nil {
		t.Fatal(err)
	}
	want := "NAME        STATE       HOST                VERSION   CONTEXT   FINGERPRINT\n" +
		"home        claimed     192.168.1.2:50000   1.2.0     mine      " + mine.Fingerprint + "\n" +
		"capsule-b   unclaimed   192.168.1.3:50000   1.2.0     -         " + strings.ReplaceAll(mine.Fingerprint, "a", "b") + "\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	out.Reset()
	if err := u.show(formatTable, foundView(nil, nil)); err != nil || out.Len() > 0 || !strings.Contains(errs.String(), "no capsule answers") {
		t.Errorf("%q, %q, %v", out.String(), errs.String(), err)
	}
}

// Who says all that a capsule says, from its own address and with its own port, hides
// none of the places where that one is.
func TestMoreHosts(t *testing.T) {
	mine := foundCapsule("home", "a", mdns.Claimed, "192.168.1.2")
	both := mine
	both.Port, both.Addresses = 1, append([]netip.Addr{netip.MustParseAddr("192.168.1.66")}, mine.Addresses...)
	hosts := moreHosts(moreHosts(nil, both), mine)
	if diff := cmp.Diff([]string{"192.168.1.66:1", "192.168.1.2:1", "192.168.1.2:50000"}, hosts); diff != "" {
		t.Error(diff)
	}
	for i := range 2 * triesMax {
		hosts = moreHosts(hosts, foundCapsule("home", "a", mdns.Claimed, fmt.Sprintf("192.168.2.%d", i)))
	}
	if len(hosts) != triesMax {
		t.Errorf("%d are tried", len(hosts))
	}
}

// What others call themselves does not move the cursor.
func TestAuditRow(t *testing.T) {
	row := auditRow(&capsulev1.AuditResponse{Operator: "x\x1b[2J", Code: "NotFound", Message: "no\nway", Lost: 3})
	if row[1] != "x?[2J" || row[4] != "NotFound: no?way (3 calls before this one have no record)" {
		t.Errorf("%q", row)
	}
}

// What the help says of the audit log's size is what it is.
func TestAuditHelp(t *testing.T) {
	long := newCapsuleAuditCommand(&app{}).Long
	for _, quote := range []string{
		fmt.Sprintf("%d MiB of changes", audit.Files*audit.ChangesMax>>20),
		fmt.Sprintf("%d MiB of refusals", audit.Files*audit.RefusalsMax>>20),
	} {
		if !strings.Contains(strings.ReplaceAll(long, "\n", " "), quote) {
			t.Errorf("the help does not say %q", quote)
		}
	}
}
