package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"regexp"
	"strconv"

	"github.com/containerd/errdefs"
)

// lvm changes the group's metadata by writing the new text behind the old one, in
// a ring, and then the header that points to it. It never flushes in between. On a
// disk with a volatile cache a power cut can leave the header without the text:
// then lvm knows no group any more. The texts of before are still there, and one
// of them is right: the newest that is whole. What the pool's own metadata relies
// on is never newer, since device mapper flushes the disk when it commits.

// The layout of a physical volume (lvm2, lib/label/label.h and
// lib/format_text/layout.h).
const (
	labelAt     = 512
	labelMagic  = "LABELONE"
	labelType   = "LVM2 001"
	labelTypeAt = 24
	areasAt     = labelAt + 32 + 32 + 8 // behind label, uuid and size of the device
	areaLen     = 16
	areasMax    = 8 // of data, then of metadata; one of each is usual

	metaHeaderLen = 512
	metaMagic     = " LVM2 x[5A%r0N*>"
	metaAreaMax   = 64 << 20
	locationAt    = 40 // of the text, in the header
	locationLen   = 24
	textAlign     = 512

	crcStart = 0xf597a6cf
)

// MendMetadata repairs what a cut left of the group's metadata on a physical
// volume, before the first lvm command of a start, and says whether it had to.
// Other damage is left as it is, with an error of class DataLoss.
func MendMetadata(device string) (mended bool, err error) {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Errorf("open PERM: %w", err)
	}
	mended, err = mendMetadata(f)
	if mended {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return mended, fmt.Errorf("metadata of volume group %q: %w", Group, err)
	}
	return mended, nil
}

type readWriterAt interface {
	io.ReaderAt
	io.WriterAt
}

func mendMetadata(f readWriterAt) (mended bool, err error) {
	a, err := findMetadata(f)
	if err != nil {
		return false, err
	}
	head := a.ring[:metaHeaderLen]
	if string(head[4:20]) != metaMagic || lvmSum(head[4:]) != binary.LittleEndian.Uint32(head) {
		return false, fmt.Errorf("its header is damaged: %w", errdefs.ErrDataLoss) // one sector: no cut does that
	}
	where := head[locationAt:][:locationLen]
	le := binary.LittleEndian
	at, size, want := le.Uint64(where), le.Uint64(where[8:]), le.Uint32(where[16:])
	if at == 0 { // no group
		return false, nil
	}
	if text, ok := a.text(at, size); ok && lvmSum(text) == want {
		return false, nil
	}
	at, text := a.newest()
	if text == nil {
		return false, fmt.Errorf("none of its texts is whole: %w", errdefs.ErrDataLoss)
	}
	clear(head[locationAt:])
	le.PutUint64(where, at)
	le.PutUint64(where[8:], uint64(len(text)))
	le.PutUint32(where[16:], lvmSum(text))
	le.PutUint32(head, lvmSum(head[4:]))
	_, err = f.WriteAt(head, a.at)
	return err == nil, err
}

// A metadataArea is the header and the ring of texts behind it.
type metadataArea struct {
	at   int64 // on the device
	ring []byte
}

// findMetadata reads the label and the area that it names.
func findMetadata(r io.ReaderAt) (metadataArea, error) {
	b := make([]byte, metaHeaderLen)
	if _, err := r.ReadAt(b, labelAt); err != nil {
		return metadataArea{}, err
	}
	if string(b[:8]) != labelMagic || string(b[labelTypeAt:][:8]) != labelType {
		return metadataArea{}, fmt.Errorf("no label of lvm: %w", errdefs.ErrDataLoss)
	}
	le := binary.LittleEndian
	lists := 0
	for i := range 2 * areasMax {
		area := b[areasAt-labelAt+i*areaLen:][:areaLen]
		at, size := le.Uint64(area), le.Uint64(area[8:])
		if lists == 1 && at > 0 {
			if at > 1<<40 || size < 2*metaHeaderLen || size > metaAreaMax {
				break
			}
			a := metadataArea{at: int64(at), ring: make([]byte, size)}
			_, err := r.ReadAt(a.ring, a.at)
			return a, err
		}
		if at == 0 {
			lists++
		}
	}
	return metadataArea{}, fmt.Errorf("its label names no metadata: %w", errdefs.ErrDataLoss)
}

// text is size bytes from at on, from the beginning again behind the end.
func (a metadataArea) text(at, size uint64) ([]byte, bool) {
	end := uint64(len(a.ring))
	if at < metaHeaderLen || at >= end || size == 0 || size > end-metaHeaderLen {
		return nil, false
	}
	if at+size <= end {
		return a.ring[at : at+size], true
	}
	return append(bytes.Clone(a.ring[at:]), a.ring[metaHeaderLen:metaHeaderLen+size-(end-at)]...), true
}

// newest finds the whole text with the highest number.
func (a metadataArea) newest() (at uint64, text []byte) {
	newest := uint64(0)
	begin := []byte(Group + " {\n")
	for o := uint64(metaHeaderLen); o+textAlign <= uint64(len(a.ring)); o += textAlign {
		if !bytes.HasPrefix(a.ring[o:], begin) {
			continue
		}
		all, _ := a.text(o, uint64(len(a.ring)-metaHeaderLen))
		if number, t := wholeText(all); t != nil && number > newest {
			newest, at, text = number, o, t
		}
	}
	return at, text
}

var (
	textNumber = regexp.MustCompile(`(?m)^seqno = ([0-9]+)$`)
	textEnd    = regexp.MustCompile(`\ncreation_time = [0-9]+\t?[^\n]*\n+\x00$`)
)

// wholeText is the text at the beginning of b, with the zero byte that ends it,
// and its number; nil when a part of it is missing.
func wholeText(b []byte) (number uint64, text []byte) {
	end := bytes.IndexByte(b, 0)
	if end < 0 {
		return 0, nil
	}
	text = b[:end+1]
	found := textNumber.FindSubmatch(text)
	if found == nil || !textEnd.Match(text) || !balanced(text) {
		return 0, nil
	}
	number, err := strconv.ParseUint(string(found[1]), 10, 32)
	if err != nil {
		return 0, nil
	}
	return number, text
}

// balanced tells whether all braces, brackets and quotes of a text are closed.
func balanced(text []byte) bool {
	var open []byte
	quoted, comment := false, false
	for i, c := range text {
		switch {
		case comment:
			comment = c != '\n'
		case c == '"' && text[max(i-1, 0)] != '\\':
			quoted = !quoted
		case quoted:
		case c == '#':
			comment = true
		case c == '{' || c == '[':
			open = append(open, c+2) // what closes it, in ASCII
		case c == '}' || c == ']':
			if len(open) == 0 || open[len(open)-1] != c {
				return false
			}
			open = open[:len(open)-1]
		}
	}
	return len(open) == 0 && !quoted
}

// lvmSum is lvm's checksum: CRC-32 with a start of its own, not inverted.
func lvmSum(b []byte) uint32 { return ^crc32.Update(^uint32(crcStart), crc32.IEEETable, b) }
