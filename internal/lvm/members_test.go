package lvm

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

const (
	homeID  = "Zs1b0m-rAtE-4cQk-BqQx-0JmY-0aZk-3n9UOe"
	otherID = "aaaaaa-bbbb-cccc-dddd-eeee-ffff-gggggg"
)

// groupText is a text of lvm 2.03.31, of a group on these physical volumes.
func groupText(ids ...string) []byte { return numbered(7, ids...) }

func numbered(number int, ids ...string) []byte {
	var pvs strings.Builder
	for i, id := range ids {
		fmt.Fprintf(&pvs, "\npv%d {\nid = \"%s\"\ndevice = \"/dev/vd%c\"\n\nstatus = [\"ALLOCATABLE\"]\nflags = []\ndev_size = 2097152\npe_start = 4096\npe_count = 255\n}\n", i, id, 'a'+i)
	}
	return fmt.Appendf(nil, "capsule {\nid = \"kkkkkk-bbbb-cccc-dddd-eeee-ffff-gggggg\"\nseqno = %d\nformat = \"lvm2\"\n\nphysical_volumes {\n%s}\n\nlogical_volumes {\n\nperm {\nid = \"pppppp-bbbb-cccc-dddd-eeee-ffff-gggggg\"\nstatus = [\"READ\"]\n}\n}\n\n}\n# Generated\ncontents = \"Text\"\ncreation_time = 17\n\n\x00", number, pvs.String())
}

// withID is a physical volume whose group has this text.
func withID(id string, text []byte) testPV {
	p := newTestPV()
	copy(p[idAt:], plain(id))
	p.put(metaHeaderLen, text)
	p.point(metaHeaderLen, text)
	return p
}

func TestReadList(t *testing.T) {
	file := filepath.Join(t.TempDir(), "perm")
	damaged := withID(homeID, groupText(homeID, otherID))
	damaged[testAreaAt+metaHeaderLen+200] ^= 1
	endless := withID(homeID, groupText(homeID)[:250])
	for name, tc := range map[string]struct {
		disk   testPV
		others []string
		class  func(error) bool
	}{
		"PERM alone":    {disk: withID(homeID, groupText(homeID))},
		"two disks":     {disk: withID(homeID, groupText(homeID, otherID)), others: []string{plain(otherID)}},
		"no group yet":  {disk: func() testPV { p := newTestPV(); copy(p[idAt:], plain(homeID)); return p }()},
		"no label":      {disk: make(testPV, 64<<10), class: errdefs.IsNotFound},
		"damaged":       {disk: damaged, class: errdefs.IsDataLoss},
		"cut short":     {disk: endless, class: errdefs.IsDataLoss},
		"too many":      {disk: withID(homeID, groupText(strings.Fields(strings.Repeat(otherID+" ", PartsMax+1))...)), class: errdefs.IsOutOfRange},
		"id of nothing": {disk: withID(strings.Repeat("\x01", 38), groupText(homeID)), class: errdefs.IsNotFound},
	} {
		if err := os.WriteFile(file, tc.disk, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := readList(file)
		if tc.class != nil {
			if !tc.class(err) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		others := l.others(plain(homeID))
		if err != nil || l.own != plain(homeID) || !slices.Equal(tc.others, others) {
			t.Error(name, l, err)
		}
	}
}

// Of a disk and its copy neither is taken, nor is one of another group.
func TestFind(t *testing.T) {
	dir := t.TempDir()
	var devices []string
	for name, id := range map[string]string{"one": otherID, "two": homeID, "two again": homeID, "two once more": homeID, "foreign": "ffffff-bbbb-cccc-dddd-eeee-ffff-gggggg"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, withID(id, groupText(id)), 0o600); err != nil {
			t.Fatal(err)
		}
		devices = append(devices, path)
	}
	found := Find([]string{plain(homeID), plain(otherID), "absent"}, append(devices, filepath.Join(dir, "gone")))
	if diff := cmp.Diff(map[string]string{plain(otherID): filepath.Join(dir, "one")}, found); diff != "" {
		t.Error(diff)
	}
}

// A change of the group is written to one disk after the other: what a cut leaves is
// read as lvm reads it.
func TestAssemble(t *testing.T) {
	const third = "tttttt-bbbb-cccc-dddd-eeee-ffff-gggggg"
	dir := t.TempDir()
	perm, other, new := filepath.Join(dir, "perm"), filepath.Join(dir, "other"), filepath.Join(dir, "new")
	for name, tc := range map[string]struct {
		perm, other, new []byte // texts
		found, missing   []string
	}{
		"alone":                            {perm: numbered(7, homeID), other: numbered(1, otherID)},
		"as it should be":                  {perm: numbered(7, homeID, otherID), other: numbered(7, homeID, otherID), found: []string{other}},
		"joined, PERM doesn't know it yet": {perm: numbered(7, homeID), new: numbered(8, homeID, third)},
		"joined, a member knows it":        {perm: numbered(7, homeID, otherID), other: numbered(8, homeID, otherID, third), new: numbered(8, homeID, otherID, third), found: []string{other, new}},
		"left, PERM doesn't know it yet":   {perm: numbered(7, homeID, otherID, third), other: numbered(7, homeID, otherID, third), new: numbered(8, homeID, third), found: []string{new}},
		"left, PERM alone knows it":        {perm: numbered(8, homeID, third), other: numbered(7, homeID, otherID, third), new: numbered(7, homeID, otherID, third), found: []string{new}},
		"gone":                             {perm: numbered(7, homeID, otherID, third), new: numbered(7, homeID, otherID, third), found: []string{new}, missing: []string{plain(otherID)}},
		"of another machine":               {perm: numbered(7, homeID, otherID), other: numbered(9, otherID, third), found: []string{other}},
	} {
		var devices []string
		for path, disk := range map[string]struct {
			id   string
			text []byte
		}{perm: {homeID, tc.perm}, other: {otherID, tc.other}, new: {third, tc.new}} {
			if err := os.WriteFile(path, make([]byte, 64<<10), 0o600); err != nil {
				t.Fatal(err)
			}
			if disk.text != nil {
				if err := os.WriteFile(path, withID(disk.id, disk.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if path != perm {
				devices = append(devices, path)
			}
		}
		p, err := Assemble(perm, devices)
		found := slices.Sorted(maps.Values(p.Found))
		slices.Sort(tc.found)
		if err != nil || p.Home != plain(homeID) || !slices.Equal(tc.found, found) || !slices.Equal(tc.missing, p.Missing) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestNewID(t *testing.T) {
	id := NewID()
	if !idForm.MatchString(id) || plain(dashed(id)) != id || len(dashed(id)) != 38 || id == NewID() {
		t.Error(id, dashed(id))
	}
}

func FuzzMembers(f *testing.F) {
	f.Add([]byte(withID(homeID, groupText(homeID, otherID))), groupText(homeID, otherID))
	f.Add([]byte(newTestPV()), []byte("\nphysical_volumes {\n"))
	f.Fuzz(func(t *testing.T, data, text []byte) {
		if l, err := members(testPV(data)); err == nil && len(l.own) != idLen {
			t.Error(l)
		}
		if ids, err := memberIDs(text); err == nil && len(ids) > PartsMax {
			t.Error(len(ids))
		}
	})
}
