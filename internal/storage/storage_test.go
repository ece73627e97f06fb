package storage

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
	"capsule/internal/installer"
)

func device(name, serial string, size uint64) disk.Device {
	return disk.Device{Name: name, Model: "Model", Serial: serial, Bytes: size, Sector: 512}
}

// A disk joins by the installer's rules: what is on it is lost only when that was said.
func TestRules(t *testing.T) {
	m := start(t, openStore(t), newModel())
	m.found = map[string]disk.Device{oldID: device("sdb", "OLD", 8<<30)}
	disks := []installer.Candidate{
		{Device: device("sda", "SYSTEM", 64<<30), Booted: true},
		{Device: device("sdb", "OLD", 8<<30), Contents: []disk.Content{{Kind: "LVM"}}},
		{Device: device("sdc", "FULL", 8<<30), Contents: []disk.Content{{Kind: "ext4", Label: "photos"}}},
		{Device: device("sdd", "SMALL", 1<<20)},
		{Device: device("sde", "EMPTY", 2<<30)},
	}
	for name, tc := range map[string]struct {
		choice installer.Choice
		says   string // of what is refused
	}{
		"empty":                    {choice: installer.Choice{Disk: "EMPTY"}},
		"full, and not said":       {choice: installer.Choice{Disk: "FULL"}, says: `holds ext4 "photos": nothing is erased unless you say so with "FULL --erase"`},
		"full, and said":           {choice: installer.Choice{Disk: "FULL", Erase: true}},
		"the system's":             {choice: installer.Choice{Disk: "SYSTEM", Erase: true}, says: "runs from"},
		"in the pool":              {choice: installer.Choice{Disk: "OLD", Erase: true}, says: "in the pool already"},
		"too small":                {choice: installer.Choice{Disk: "SMALL"}, says: "too small"},
		"not there":                {choice: installer.Choice{Disk: "sde"}, says: "no disk has the serial number"},
		"smaller than a capsule's": {choice: installer.Choice{Disk: "EMPTY"}},
	} {
		plan, err := m.rules().Plan(disks, tc.choice)
		if tc.says == "" && (err != nil || !plan.Disk.Is(tc.choice.Disk)) || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The same command again follows what is under way, and nothing else is begun beside it.
func TestUnderWay(t *testing.T) {
	m := start(t, openStore(t), newModel())
	m.looked = true
	c := replacing()
	c.Digest = "agreed"
	if err := m.begin(c); err != nil {
		t.Fatal(err)
	}
	plan, err := m.Plan(t.Context(), installer.Choice{Disk: "new"}, "old")
	if err != nil || !plan.UnderWay || plan.Digest != "agreed" || !plan.Replaced.Is("OLD") {
		t.Error(plan, err)
	}
	if id, err := m.start(t.Context(), installer.Choice{Disk: "NEW"}, "OLD", "agreed"); id != c.ID || err != nil {
		t.Error(id, err)
	}
	for name, other := range map[string][2]string{"another disk": {"OTHER", "OLD"}, "added": {"NEW", ""}, "for another one": {"NEW", "OTHER"}} {
		if _, err := m.Plan(t.Context(), installer.Choice{Disk: other[0]}, other[1]); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "under way") {
			t.Error(name, err)
		}
	}
	if err := m.whole(); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}

// While a disk is missing nothing is changed, and it's named.
func TestMissing(t *testing.T) {
	m := start(t, openStore(t), newModel())
	if err := m.whole(); !errdefs.IsUnavailable(err) {
		t.Error("before the first look:", err)
	}
	m.looked, m.missing = true, []string{oldID}
	m.known[oldID] = identity{Serial: "OLD", Model: "Model"}
	if err := m.whole(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `"OLD" (Model)`) {
		t.Error(err)
	}
	if got := m.Missing(); len(got) != 1 || !strings.Contains(got[0], `"OLD"`) {
		t.Error(got)
	}
	m.missing = []string{"unknown"}
	if got := m.Missing(); !strings.Contains(got[0], "nothing is known") {
		t.Error(got)
	}
}

func TestNames(t *testing.T) {
	m := start(t, openStore(t), newModel())
	m.looked = true
	for _, bad := range []string{"", strings.Repeat("x", nameMax+1)} {
		if _, err := m.Plan(t.Context(), installer.Choice{Disk: bad}, ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}
