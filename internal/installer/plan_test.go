package installer

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
)

const gib = 1 << 30

// a disk of a machine.
func a(name, serial string, size uint64, contents ...disk.Content) Candidate {
	return Candidate{Device: disk.Device{Name: name, Model: "Model " + name, Serial: serial, Bytes: size, Sector: 512}, Contents: contents}
}

func with(c Candidate, change func(*Candidate)) Candidate {
	change(&c)
	return c
}

var (
	photos = disk.Content{Kind: "ext4", Label: "photos", Bytes: 500 * gib}
	stick  = with(a("sda", "STICK", 32*gib, disk.Content{Kind: "GPT"}), func(c *Candidate) { c.Booted, c.Removable = true, true })
	blank  = a("nvme0n1", "NVME1", 500*gib)
	data   = a("sdb", "SATA1", 500*gib, photos)
)

func TestPlan(t *testing.T) {
	for name, tc := range map[string]struct {
		disks  []Candidate
		choice Choice
		want   string // serial of the disk
		class  func(error) bool
		says   string
	}{
		"the only empty one":        {disks: []Candidate{stick, blank, data}, want: "NVME1"},
		"an empty one by name":      {disks: []Candidate{stick, blank, data}, choice: Choice{Disk: "nvme1"}, want: "NVME1"},
		"a full one, twice said":    {disks: []Candidate{stick, blank, data}, choice: Choice{Disk: "SATA1", Erase: true}, want: "SATA1"},
		"a full one, once said":     {disks: []Candidate{stick, blank, data}, choice: Choice{Disk: "SATA1"}, class: errdefs.IsFailedPrecondition, says: `ext4 "photos"`},
		"erase what?":               {disks: []Candidate{stick, data}, choice: Choice{Erase: true}, class: errdefs.IsInvalidArgument, says: "isn't named"},
		"the only one, full":        {disks: []Candidate{stick, data}, class: errdefs.IsFailedPrecondition, says: "no disk is empty"},
		"none but the stick":        {disks: []Candidate{stick}, class: errdefs.IsFailedPrecondition, says: "runs from"},
		"two empty ones":            {disks: []Candidate{blank, a("sdc", "SATA2", 500*gib)}, class: errdefs.IsFailedPrecondition, says: "2 disks are empty"},
		"wrong serial":              {disks: []Candidate{stick, blank}, choice: Choice{Disk: "NVME"}, class: errdefs.IsNotFound, says: "NVME1"},
		"a name of this boot":       {disks: []Candidate{stick, blank}, choice: Choice{Disk: "nvme0n1"}, class: errdefs.IsNotFound, says: "no disk has"},
		"the stick itself":          {disks: []Candidate{stick, blank}, choice: Choice{Disk: "STICK", Erase: true}, class: errdefs.IsFailedPrecondition, says: "runs from"},
		"an empty stick, not named": {disks: []Candidate{with(blank, func(c *Candidate) { c.Removable = true })}, class: errdefs.IsFailedPrecondition, says: "pulled out"},
		"an empty stick, named":     {disks: []Candidate{with(blank, func(c *Candidate) { c.Removable = true })}, choice: Choice{Disk: "NVME1"}, want: "NVME1"},
		"1 GiB":                     {disks: []Candidate{a("sdd", "SMALL", gib)}, choice: Choice{Disk: "SMALL"}, class: errdefs.IsFailedPrecondition, says: "7170 MiB are needed"},
		"4 GiB":                     {disks: []Candidate{a("sdd", "SMALL", 4*gib)}, choice: Choice{Disk: "SMALL"}, class: errdefs.IsFailedPrecondition, says: "too small"},
		"a MiB too small":           {disks: []Candidate{a("sdd", "SMALL", disk.NeededBytes-1<<20)}, choice: Choice{Disk: "SMALL"}, class: errdefs.IsFailedPrecondition, says: "too small"},
		"just enough":               {disks: []Candidate{a("sdd", "SMALL", disk.NeededBytes)}, want: "SMALL"},
		"blocks of 4096 bytes":      {disks: []Candidate{with(blank, func(c *Candidate) { c.Sector = 4096 })}, want: "NVME1"},
		"blocks of 520 bytes":       {disks: []Candidate{with(blank, func(c *Candidate) { c.Sector = 520 })}, choice: Choice{Disk: "NVME1"}, class: errdefs.IsFailedPrecondition, says: "520"},
		"write-protected":           {disks: []Candidate{with(blank, func(c *Candidate) { c.ReadOnly = true })}, choice: Choice{Disk: "NVME1"}, class: errdefs.IsFailedPrecondition, says: "write-protected"},
		"not readable":              {disks: []Candidate{with(blank, func(c *Candidate) { c.Fault = "I/O error" })}, choice: Choice{Disk: "NVME1"}, class: errdefs.IsFailedPrecondition, says: "I/O error"},
		"equal serials":             {disks: []Candidate{blank, a("sdc", "nvme1", 500*gib, photos)}, choice: Choice{Disk: "NVME1", Erase: true}, class: errdefs.IsFailedPrecondition, says: "same serial number"},
		"equal serials, not named":  {disks: []Candidate{blank, a("sdc", "NVME1", 500*gib, photos)}, class: errdefs.IsFailedPrecondition, says: "same serial number"},
		"equal to the stick's":      {disks: []Candidate{with(stick, func(c *Candidate) { c.Serial = "NVME1" }), blank}, class: errdefs.IsFailedPrecondition, says: "same serial number"},
		"equal serials, by other name": {
			disks:  []Candidate{with(blank, func(c *Candidate) { c.WWN = "eui.1" }), with(blank, func(c *Candidate) { c.Name, c.WWN = "nvme0n2", "eui.2" })},
			choice: Choice{Disk: "eui.2"}, want: "NVME1",
		},
		"nothing to call it by": {disks: []Candidate{with(blank, func(c *Candidate) { c.Serial = "" })}, class: errdefs.IsFailedPrecondition, says: "neither serial number"},
		"no disks":              {class: errdefs.IsFailedPrecondition, says: "there is none"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := NewPlan(tc.disks, tc.choice)
			if tc.class == nil {
				if err != nil || p.Disk.Serial != tc.want || p.Digest == "" {
					t.Errorf("%q, %v", p.Disk.Serial, err)
				}
				return
			}
			if err == nil || !tc.class(err) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v: want %q", err, tc.says)
			}
		})
	}
}

// A plan holds for what was shown, under whatever name the kernel gives.
func TestDigest(t *testing.T) {
	if digest(data) != digest(with(data, func(c *Candidate) { c.Name = "sdx" })) {
		t.Error("a plan hangs on a name of this boot")
	}
	for name, other := range map[string]Candidate{
		"another disk": with(data, func(c *Candidate) { c.Serial = "SATA2" }),
		"more on it":   with(data, func(c *Candidate) { c.Contents = append(c.Contents[:1:1], photos) }),
		"another size": with(data, func(c *Candidate) { c.Bytes++ }),
	} {
		if digest(data) == digest(other) {
			t.Errorf("%s has the same plan", name)
		}
	}
}

// A disk has room for the volumes of a backup, or is refused before it's written to.
func TestHolds(t *testing.T) {
	for name, tc := range map[string]struct {
		disk Candidate
		need uint64
		fits bool
	}{
		"nothing to hold":  {a("sda", "A", 8*gib), 0, true},
		"some":             {a("sda", "A", 8*gib), gib, true},
		"more than it has": {a("sda", "A", 8*gib), 8 * gib, false},
		"a large one":      {blank, 300 * gib, true},
		"all of a disk":    {blank, 490 * gib, false},
	} {
		if err := Holds(tc.disk, tc.need); (err == nil) != tc.fits || err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
