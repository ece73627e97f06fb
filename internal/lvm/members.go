package lvm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// A physical volume's own id stands in its label, behind the label's header. lvm's
// texts and reports write it with dashes.
const (
	idAt  = labelAt + 32
	idLen = 32

	// PartsMax is how many disks a group of ours has at most.
	PartsMax = 64

	// labelsMax bounds the wait for disks to tell whose they are.
	labelsMax = 10 * time.Second
)

var (
	idForm   = regexp.MustCompile(`^[0-9A-Za-z#!]{32}$`)
	memberID = regexp.MustCompile(`^id = "([0-9A-Za-z#!-]{38})"$`)
)

// plain is an id without its dashes.
func plain(id string) string { return strings.ReplaceAll(id, "-", "") }

// Parts are the disks that make up the group, by id.
type Parts struct {
	Home    string            // PERM
	Found   map[string]string // the devices of the others
	Missing []string          // others that are on none of the devices
}

// Assemble finds the parts of the group of which PERM is one, among devices. No lvm
// command runs for it. A cut may have left an older list on one disk than on another:
// the newest counts, as it does for lvm.
func Assemble(perm string, devices []string) (Parts, error) {
	home, err := readList(perm)
	if err != nil {
		return Parts{}, fmt.Errorf("disks of volume group %q: %w", Group, err)
	}
	newest := home
	found := Find(home.others(home.own), devices)
	for _, device := range found {
		l, err := readList(device)
		if err == nil && l.number > newest.number && slices.Contains(l.all, home.own) {
			newest = l
		}
	}
	p := Parts{Home: home.own, Found: found}
	others := newest.others(home.own)
	if newest.number != home.number {
		p.Found = Find(others, devices)
	}
	for _, id := range others {
		if _, there := p.Found[id]; !there {
			p.Missing = append(p.Missing, id)
		}
	}
	return p, nil
}

// A list of the group's parts, as a physical volume has it.
type list struct {
	own    string
	all    []string
	number uint64 // of the group's metadata: it only grows
}

func (l list) others(home string) []string {
	return slices.DeleteFunc(slices.Clone(l.all), func(id string) bool { return id == home })
}

func readList(device string) (list, error) {
	f, err := os.Open(device)
	if err != nil {
		return list{}, err
	}
	defer f.Close()
	return members(f)
}

// members reads a physical volume's own id, and those of all in its group.
func members(r io.ReaderAt) (l list, err error) {
	if l.own, err = labelID(r); err != nil {
		return list{}, err
	}
	a, err := findMetadata(r)
	if err != nil {
		return list{}, err
	}
	where, le := a.ring[:metaHeaderLen][locationAt:], binary.LittleEndian
	at, size := le.Uint64(where), le.Uint64(where[8:])
	if at == 0 { // no group
		return l, nil
	}
	text, ok := a.text(at, size)
	if !ok || lvmSum(text) != le.Uint32(where[16:]) {
		return list{}, fmt.Errorf("its text is damaged: %w", errdefs.ErrDataLoss)
	}
	if m := textNumber.FindSubmatch(text); m != nil {
		l.number, _ = strconv.ParseUint(string(m[1]), 10, 32) // digits
	}
	l.all, err = memberIDs(text)
	return l, err
}

// memberIDs picks the ids of the section physical_volumes of a text.
func memberIDs(text []byte) ([]string, error) {
	_, section, found := bytes.Cut(text, []byte("\nphysical_volumes {\n"))
	if !found {
		return nil, nil
	}
	var ids []string
	depth := 1
	for line := range bytes.Lines(section) {
		line = bytes.TrimSpace(line)
		switch {
		case bytes.HasSuffix(line, []byte("{")):
			depth++
		case bytes.Equal(line, []byte("}")):
			depth--
		}
		if depth == 0 {
			return ids, nil
		}
		if m := memberID.FindSubmatch(line); m != nil && depth == 2 {
			if len(ids) == PartsMax {
				return nil, fmt.Errorf("more than %d disks: %w", PartsMax, errdefs.ErrOutOfRange)
			}
			ids = append(ids, plain(string(m[1])))
		}
	}
	return nil, fmt.Errorf("its list of disks has no end: %w", errdefs.ErrDataLoss)
}

// labelID reads a physical volume's id; NotFound where there is none.
func labelID(r io.ReaderAt) (string, error) {
	b := make([]byte, idAt+idLen)
	if _, err := r.ReadAt(b, 0); err != nil {
		return "", err
	}
	id := string(b[idAt:])
	if string(b[labelAt:][:8]) != labelMagic || string(b[labelAt+labelTypeAt:][:8]) != labelType || !idForm.MatchString(id) {
		return "", fmt.Errorf("no label of lvm: %w", errdefs.ErrNotFound)
	}
	return id, nil
}

// ID is the id of the physical volume on a device, without dashes; NotFound when there
// is none.
func ID(device string) (string, error) {
	f, err := os.Open(device)
	if err != nil {
		return "", err
	}
	defer f.Close()
	id, err := labelID(f)
	if err != nil {
		return "", fmt.Errorf("%q: %w", device, err)
	}
	return id, nil
}

// Find looks for the physical volumes with these ids on devices, and gives the device
// of each. One that several claim to be isn't taken: they are copies of each other,
// and the wrong one would ruin the group. A device that doesn't answer holds up
// nothing but itself.
func Find(ids, devices []string) map[string]string {
	if len(ids) == 0 { // of most capsules: no other disk is even looked at
		return map[string]string{}
	}
	type answer struct{ id, device string }
	answers := make(chan answer, len(devices))
	var all sync.WaitGroup
	for _, d := range devices {
		all.Go(func() {
			id, _ := ID(d) // what can't be read is nobody's
			answers <- answer{id, d}
		})
	}
	go func() { all.Wait(); close(answers) }()
	found, twice := map[string]string{}, map[string]bool{}
	end := time.After(labelsMax)
	for {
		select {
		case a, more := <-answers:
			if !more {
				return found
			}
			if !slices.Contains(ids, a.id) || twice[a.id] {
				continue
			}
			if _, there := found[a.id]; there {
				delete(found, a.id)
				twice[a.id] = true
				continue
			}
			found[a.id] = a.device
		case <-end:
			return found
		}
	}
}
