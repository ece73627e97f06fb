package dm

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A target's header within a message, before its text.
const (
	specLen = 40
	kindAt  = 24
	kindLen = 16
)

// targetMax is the most targets that are read of a device; ours have one each.
const targetMax = 4096

func parseDevice(msg []byte) (Device, error) {
	data, err := content(msg)
	if err != nil {
		return Device{}, err
	}
	le := binary.LittleEndian
	flags := le.Uint32(msg[28:])
	d := Device{
		Minor:     unix.Minor(le.Uint64(msg[40:])),
		Events:    le.Uint32(msg[32:]),
		Openers:   int32(le.Uint32(msg[24:])),
		Suspended: flags&flagSuspend != 0,
		ReadOnly:  flags&flagReadOnly != 0,
	}
	count := le.Uint32(msg[20:])
	if count > targetMax {
		return Device{}, fmt.Errorf("%d targets: %w", count, errdefs.ErrOutOfRange)
	}
	for at := uint32(0); count > 0; count-- {
		if uint64(at)+specLen > uint64(len(data)) {
			return Device{}, fmt.Errorf("target at byte %d of %d: %w", at, len(data), errdefs.ErrDataLoss)
		}
		spec := data[at:]
		d.Targets = append(d.Targets, Target{
			Start:   le.Uint64(spec[0:]),
			Sectors: le.Uint64(spec[8:]),
			Kind:    text(spec[kindAt : kindAt+kindLen]),
			Params:  text(spec[specLen:]),
		})
		at = le.Uint32(spec[20:]) // of the next one, from the first one's start
	}
	return d, nil
}

// parseNames reads a list of struct dm_name_list: device number, distance to the
// next or zero, name.
func parseNames(msg []byte) ([]string, error) {
	data, err := content(msg)
	if err != nil {
		return nil, err
	}
	const nameAt = 12
	le := binary.LittleEndian
	var names []string
	for len(data) >= nameAt {
		if le.Uint64(data) == 0 { // no device at all
			break
		}
		names = append(names, text(data[nameAt:]))
		next := le.Uint32(data[8:])
		if next == 0 {
			break
		}
		if next < nameAt || uint64(next) > uint64(len(data)) {
			return nil, fmt.Errorf("next name after %d bytes: %w", next, errdefs.ErrDataLoss)
		}
		data = data[next:]
	}
	return names, nil
}

// content is what follows a message's header.
func content(msg []byte) ([]byte, error) {
	if len(msg) < headerLen {
		return nil, fmt.Errorf("%d bytes of device mapper: %w", len(msg), errdefs.ErrDataLoss)
	}
	le := binary.LittleEndian
	start, size := le.Uint32(msg[16:]), le.Uint32(msg[12:])
	if start < headerLen || start > size || uint64(size) > uint64(len(msg)) {
		return nil, fmt.Errorf("content from byte %d to %d of %d: %w", start, size, len(msg), errdefs.ErrDataLoss)
	}
	return msg[start:size], nil
}

func tableLen(targets []Target) int {
	n := headerLen
	for _, t := range targets {
		n += rowLen(t)
	}
	return n
}

// rowLen is a target's place in a table: its text ends with a zero and is filled
// up to eight bytes.
func rowLen(t Target) int { return specLen + (len(t.Params)+8)/8*8 }

func putTargets(msg []byte, targets []Target) {
	le := binary.LittleEndian
	le.PutUint32(msg[20:], uint32(len(targets)))
	spec := msg[headerLen:]
	for _, t := range targets {
		le.PutUint64(spec[0:], t.Start)
		le.PutUint64(spec[8:], t.Sectors)
		le.PutUint32(spec[20:], uint32(rowLen(t)))
		copy(spec[kindAt:kindAt+kindLen-1], t.Kind)
		copy(spec[specLen:], t.Params)
		spec = spec[rowLen(t):]
	}
}

func text(b []byte) string {
	before, _, _ := bytes.Cut(b, []byte{0})
	return string(before)
}
