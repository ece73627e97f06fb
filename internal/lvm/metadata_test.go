package lvm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const (
	testAreaAt  = 4096
	testAreaLen = 32 << 10
)

// testText is a text as lvm writes it.
func testText(number int, fill int) []byte {
	return fmt.Appendf(nil, "capsule {\nid = \"a{b\"\nseqno = %d\nstatus = [\"READ\"]\t# a brace {\n%s\n}\n# Generated\n\ncontents = \"Text\"\n\ncreation_time = 17\t# now\n\n\x00",
		number, strings.Repeat("k = 1\n", fill/6))
}

// A testPV is a physical volume in memory.
type testPV []byte

func (p testPV) ReadAt(b []byte, at int64) (int, error)  { return bytes.NewReader(p).ReadAt(b, at) }
func (p testPV) WriteAt(b []byte, at int64) (int, error) { return copy(p[at:], b), nil }

func newTestPV() testPV {
	p := make(testPV, testAreaAt+testAreaLen)
	le := binary.LittleEndian
	copy(p[labelAt:], labelMagic)
	copy(p[labelAt+labelTypeAt:], labelType)
	le.PutUint64(p[areasAt:], 1<<20) // of data, to the end
	le.PutUint64(p[areasAt+2*areaLen:], testAreaAt)
	le.PutUint64(p[areasAt+2*areaLen+8:], testAreaLen)
	copy(p[testAreaAt+4:], metaMagic)
	le.PutUint32(p[testAreaAt+20:], 1)
	le.PutUint64(p[testAreaAt+24:], testAreaAt)
	le.PutUint64(p[testAreaAt+32:], testAreaLen)
	p.point(0, nil)
	return p
}

// point writes the header.
func (p testPV) point(at uint64, text []byte) {
	head, le := p[testAreaAt:][:metaHeaderLen], binary.LittleEndian
	le.PutUint64(head[locationAt:], at)
	le.PutUint64(head[locationAt+8:], uint64(len(text)))
	le.PutUint32(head[locationAt+16:], lvmSum(text))
	le.PutUint32(head, lvmSum(head[4:]))
}

// put writes a text into the ring.
func (p testPV) put(at int, text []byte) {
	ring := p[testAreaAt:]
	n := copy(ring[at:], text)
	copy(ring[metaHeaderLen:], text[n:])
}

func TestMendMetadata(t *testing.T) {
	one, two, three := testText(1, 700), testText(2, 700), testText(3, 1700)
	const atOne, atTwo, atThree = 512, 2048, 4096
	for name, tc := range map[string]struct {
		spoil  func(p testPV)
		mended bool
		want   []byte // the text that the header points to then
		lost   bool
	}{
		"whole":           {func(testPV) {}, false, three, false},
		"text not there":  {func(p testPV) { clear(p[testAreaAt+atThree:][:2048]) }, true, two, false},
		"text's end":      {func(p testPV) { clear(p[testAreaAt+atThree+1536:][:512]) }, true, two, false},
		"text's middle":   {func(p testPV) { clear(p[testAreaAt+atThree+512:][:512]) }, true, two, false},
		"text's head":     {func(p testPV) { clear(p[testAreaAt+atThree:][:512]) }, true, two, false},
		"two texts":       {func(p testPV) { clear(p[testAreaAt+atTwo:][:4096]) }, true, one, false},
		"all texts":       {func(p testPV) { clear(p[testAreaAt+512:]) }, false, nil, true},
		"header":          {func(p testPV) { p[testAreaAt+100]++ }, false, nil, true},
		"label":           {func(p testPV) { p[labelAt]++ }, false, nil, true},
		"no group":        {func(p testPV) { p.point(0, nil) }, false, nil, false},
		"older lap":       {func(p testPV) { copy(p[testAreaAt+atThree+512:], "x { [ \" \n") }, true, two, false},
		"pointing beyond": {func(p testPV) { p.point(testAreaLen-512, make([]byte, testAreaLen)) }, true, three, false},
	} {
		p := newTestPV()
		p.put(atOne, one)
		p.put(atTwo, two)
		p.put(atThree, three)
		p.point(atThree, three)
		tc.spoil(p)
		before := bytes.Clone(p)
		mended, err := mendMetadata(p)
		if mended != tc.mended || errdefs.IsDataLoss(err) != tc.lost || !tc.lost && err != nil {
			t.Errorf("%s: mended %v, %v", name, mended, err)
		}
		if !tc.mended && !bytes.Equal(before, p) {
			t.Errorf("%s: it was written to", name)
		}
		if tc.want == nil {
			continue
		}
		a, err := findMetadata(p)
		if err != nil {
			t.Fatal(err)
		}
		where := a.ring[locationAt:]
		text, ok := a.text(binary.LittleEndian.Uint64(where), binary.LittleEndian.Uint64(where[8:]))
		if !ok || !bytes.Equal(text, tc.want) {
			t.Errorf("%s: the header points to %q", name, text)
		}
		if again, err := mendMetadata(p); again || err != nil {
			t.Errorf("%s: mended %v again, %v", name, again, err)
		}
	}
}

// A text may go on at the ring's beginning.
func TestMendMetadataWraps(t *testing.T) {
	p := newTestPV()
	old, cut := testText(7, 1200), testText(8, 900)
	p.put(testAreaLen-512, old)
	p.put(2048, cut)
	p.point(2048, cut)
	clear(p[testAreaAt+2048+512:][:512])
	if mended, err := mendMetadata(p); !mended || err != nil {
		t.Fatal(mended, err)
	}
	if at := binary.LittleEndian.Uint64(p[testAreaAt+locationAt:]); at != testAreaLen-512 {
		t.Errorf("the header points to %d", at)
	}
}

// The checksum, reckoned bit by bit (lvm2, lib/misc/crc.c).
func TestLVMSum(t *testing.T) {
	for text, want := range map[string]uint32{"": crcStart, "123456789": 0x4991cf02} {
		if got := lvmSum([]byte(text)); got != want {
			t.Errorf("%q: %#x, want %#x", text, got, want)
		}
	}
}

func FuzzMendMetadata(f *testing.F) {
	p := newTestPV()
	p.put(512, testText(1, 10))
	p.point(1024, testText(2, 10))
	f.Add([]byte(p))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := testPV(bytes.Clone(data))
		mended, err := mendMetadata(p)
		if !mended && !bytes.Equal(p, data) {
			t.Fatal("written to without being mended")
		}
		if mended && err == nil {
			if again, err := mendMetadata(p); again || err != nil {
				t.Fatal("mended twice", err)
			}
		}
	})
}
