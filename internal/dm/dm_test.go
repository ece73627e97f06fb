package dm

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// answer is a message as the kernel fills it in.
func answer(flags uint32, targets ...Target) []byte {
	msg := message("x", flags, tableLen(targets)+100)
	putTargets(msg, targets)
	le := binary.LittleEndian
	le.PutUint32(msg[24:], 2)              // openers
	le.PutUint32(msg[32:], 7)              // events
	le.PutUint64(msg[40:], 253<<8|5)       // device number
	at, spec := uint32(0), msg[headerLen:] // the kernel counts from the first one's start
	for _, t := range targets {
		at += uint32(rowLen(t))
		le.PutUint32(spec[20:], at)
		spec = spec[rowLen(t):]
	}
	return msg
}

func TestParseDevice(t *testing.T) {
	targets := []Target{
		{Start: 0, Sectors: 2048, Kind: "thin-pool", Params: "1 420/4096 8/16384 - rw discard_passdown error_if_no_space - 1024 "},
		{Start: 2048, Sectors: 8, Kind: "linear"},
		{Start: 2056, Sectors: 1 << 40, Kind: "a-kind-of-15-by", Params: "1234567"},
	}
	got, err := parseDevice(answer(flagSuspend|flagReadOnly, targets...))
	want := Device{Minor: 5, Events: 7, Openers: 2, Suspended: true, ReadOnly: true, Targets: targets}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if got.Path() != "/dev/dm-5" {
		t.Error(got.Path())
	}
}

func TestParseDeviceBad(t *testing.T) {
	le := binary.LittleEndian
	for name, harm := range map[string]func(b []byte) []byte{
		"empty":          func([]byte) []byte { return nil },
		"header only":    func(b []byte) []byte { return b[:headerLen-1] },
		"start too far":  func(b []byte) []byte { le.PutUint32(b[16:], 1<<20); return b },
		"start too near": func(b []byte) []byte { le.PutUint32(b[16:], 8); return b },
		"size too large": func(b []byte) []byte { le.PutUint32(b[12:], 1<<31); return b },
		"too many":       func(b []byte) []byte { le.PutUint32(b[20:], 1<<31); return b },
		"next beyond":    func(b []byte) []byte { le.PutUint32(b[20:], 2); le.PutUint32(b[headerLen+20:], 1<<31); return b },
	} {
		if d, err := parseDevice(harm(answer(0, Target{Sectors: 1, Kind: "linear"}))); err == nil {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func names(all ...string) []byte {
	msg := message("", 0, firstLen)
	at := headerLen
	le := binary.LittleEndian
	for i, name := range all {
		le.PutUint64(msg[at:], 253<<8|uint64(i))
		copy(msg[at+12:], name)
		n := (12 + len(name) + 8) / 8 * 8
		if i < len(all)-1 {
			le.PutUint32(msg[at+8:], uint32(n))
		}
		at += n
	}
	return msg
}

func TestParseNames(t *testing.T) {
	for _, want := range [][]string{nil, {"capsule-perm"}, {"capsule-perm", "capsule-vol--a.000001", "x"}} {
		got, err := parseNames(names(want...))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Error(err, diff)
		}
	}
	b := names("a", "b")
	binary.LittleEndian.PutUint32(b[headerLen+8:], 1<<31)
	if got, err := parseNames(b); !errdefs.IsDataLoss(err) {
		t.Error(got, err)
	}
}

// A name that is too long is cut where the kernel's field ends, and hits nothing
// else of the message.
func TestMessageKeepsItsFields(t *testing.T) {
	msg := message(strings.Repeat("n", 500), flagNoFlush, headerLen)
	if got := text(msg[nameAt:]); got != strings.Repeat("n", nameMax) {
		t.Errorf("%d bytes of name", len(got))
	}
}

func FuzzParseDevice(f *testing.F) {
	f.Add(answer(0, Target{Sectors: 8, Kind: "thin", Params: "128 127"}))
	f.Add(names("a", "b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := parseDevice(b); err == nil && len(d.Targets) > targetMax {
			t.Error(len(d.Targets))
		}
		if all, err := parseNames(b); err == nil && len(all) > len(b)/12 {
			t.Error(len(all))
		}
	})
}
