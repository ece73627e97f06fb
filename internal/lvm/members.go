package lvm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
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

	membersMax = 64 // of a group that is ours

	// labelsMax bounds the wait for disks to tell whose they are.
	labelsMax = 10 * time.Second
)

var (
	idForm   = regexp.MustCompile(`^[0-9A-Za-z#!]{32}$`)
	memberID = regexp.MustCompile(`^id = "([0-9A-Za-z#!-]{38})"$`)
)

// plain is an id without its dashes.
func plain(id string) string { return strings.ReplaceAll(id, "-", "") }

// Members tells the ids of the physical volumes that make up the group, by the
// metadata on PERM, and which of them PERM itself is. No lvm command runs for it. The
// ids have no dashes.
func Members(perm string) (home string, others []string, err error) {
	f, err := os.Open(perm)
	if err != nil {
		return "", nil, fmt.Errorf("open PERM: %w", err)
	}
	defer f.Close()
	home, all, err := members(f)
	if err != nil {
		return "", nil, fmt.Errorf("disks of volume group %q: %w", Group, err)
	}
	return home, slices.DeleteFunc(all, func(id string) bool { return id == home }), nil
}

// members reads a physical volume's own id, and those of all in its group.
func members(r io.ReaderAt) (own string, all []string, err error) {
	if own, err = labelID(r); err != nil {
		return "", nil, err
	}
	a, err := findMetadata(r)
	if err != nil {
		return "", nil, err
	}
	where, le := a.ring[:metaHeaderLen][locationAt:], binary.LittleEndian
	at, size := le.Uint64(where), le.Uint64(where[8:])
	if at == 0 {
		return own, nil, nil
	}
	text, ok := a.text(at, size)
	if !ok || lvmSum(text) != le.Uint32(where[16:]) {
		return "", nil, fmt.Errorf("its text is damaged: %w", errdefs.ErrDataLoss)
	}
	all, err = memberIDs(text)
	return own, all, err
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
			if len(ids) == membersMax {
				return nil, fmt.Errorf("more than %d disks: %w", membersMax, errdefs.ErrOutOfRange)
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
