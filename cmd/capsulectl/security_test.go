package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/identity"
)

// TestSecurityPage checks what docs/security.md quotes: which call takes which role,
// and bounds.
func TestSecurityPage(t *testing.T) {
	data, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	_, rest, _ := strings.Cut(page, "<!-- calls -->\n")
	got, _, _ := strings.Cut(rest, "<!-- /calls -->")
	if want := callsTable(); got != want {
		t.Errorf("the table of calls is to be:\n%s", want)
	}
	const day, year = 24, 365 * 24
	for _, quote := range []string{
		fmt.Sprintf("%.0f minutes from the boot", identity.ClaimWindow.Minutes()),
		fmt.Sprintf("| wrong tries | %d in one boot", identity.ClaimTriesMax),
		fmt.Sprintf("| good for | %.0f years for who claimed; %.0f year for who was granted, `--ttl` up to %.0f years |",
			identity.ClaimLife.Hours()/year, identity.DefaultLife.Hours()/year, identity.LifeMax.Hours()/year),
		"once less than half of its life is left",
		fmt.Sprintf("from %.0f days before the end", warnLeft.Hours()/day),
		identity.ReclaimFile,
	} {
		if !strings.Contains(page, quote) {
			t.Errorf("the page does not say %q", quote)
		}
	}
}

// callsTable is what each role may call, as the page has it.
func callsTable() string {
	byRole := map[capsulev1.Role][]string{}
	var order []capsulev1.Role
	for _, m := range methods() {
		if byRole[m.role] == nil {
			order = append(order, m.role)
		}
		byRole[m.role] = append(byRole[m.role], m.Service+"."+m.Method)
	}
	var b strings.Builder
	b.WriteString("| Role | Calls that it adds |\n|---|---|\n")
	for _, role := range order {
		fmt.Fprintf(&b, "| %s | %s |\n", roleName(role), strings.Join(byRole[role], ", "))
	}
	return b.String()
}
