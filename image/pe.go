package main

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// section is one part of a unified kernel image.
type section struct {
	name   string
	data   []byte
	memory uint32 // bytes in memory when more than the data, else 0
	code   bool
}

// Offsets in a PE32+ file: https://learn.microsoft.com/windows/win32/debug/pe-format
const (
	peOffsetAt        = 0x3c
	peSignature       = "PE\x00\x00"
	peHeaderSize      = 24 // signature and file header
	peSectionCount    = 6  // from the signature
	peOptionalSize    = 20
	pePlusMagic       = 0x20b
	peSectionAlign    = 32 // from the optional header
	peFileAlign       = 36
	peImageSize       = 56
	peHeadersSize     = 60
	peChecksum        = 64
	peSectionSize     = 40
	peSectionNameSize = 8

	peReadable    = 0x40000000
	peCode        = 0x00000020
	peInitialised = 0x00000040
)

// peFile is a PE32+ file whose section table can grow.
type peFile struct {
	data     []byte
	header   int // of the signature
	optional int
	table    int // of the first section header
	count    int // sections
}

func parsePE(data []byte) (*peFile, error) {
	bad := func(what string) error { return fmt.Errorf("read PE file: %s", what) }
	if len(data) < peOffsetAt+4 {
		return nil, bad("too short")
	}
	p := &peFile{data: data, header: int(binary.LittleEndian.Uint32(data[peOffsetAt:]))}
	p.optional = p.header + peHeaderSize
	if p.header < 0 || p.optional < 0 || len(data) < p.optional+peChecksum+4 {
		return nil, bad("header outside the file")
	}
	if string(data[p.header:p.header+4]) != peSignature || binary.LittleEndian.Uint16(data[p.optional:]) != pePlusMagic {
		return nil, bad("not PE32+")
	}
	p.count = int(binary.LittleEndian.Uint16(data[p.header+peSectionCount:]))
	p.table = p.optional + int(binary.LittleEndian.Uint16(data[p.header+peOptionalSize:]))
	if p.count == 0 || len(data) < p.table+p.count*peSectionSize {
		return nil, bad("section table outside the file")
	}
	for _, at := range []int{peSectionAlign, peFileAlign} {
		if align := p.field(at); align == 0 || align&(align-1) != 0 {
			return nil, bad("alignment is no power of two")
		}
	}
	return p, nil
}

// field reads a 32-bit field of the optional header.
func (p *peFile) field(at int) uint32 { return binary.LittleEndian.Uint32(p.data[p.optional+at:]) }

func (p *peFile) setField(at int, value uint32) {
	binary.LittleEndian.PutUint32(p.data[p.optional+at:], value)
}

// imageSize is how many bytes the file takes in memory.
func (p *peFile) imageSize() uint32 { return p.field(peImageSize) }

// firstData is where the first section's data start in the file.
func (p *peFile) firstData() int {
	first := len(p.data)
	for i := range p.count {
		header := p.data[p.table+i*peSectionSize:]
		if at := int(binary.LittleEndian.Uint32(header[20:])); at > 0 {
			first = min(first, at)
		}
	}
	return first
}

// appendSections returns the stub with more sections behind its own.
func appendSections(stub []byte, sections []section) ([]byte, error) {
	p, err := parsePE(append([]byte(nil), stub...))
	if err != nil {
		return nil, err
	}
	end := p.table + (p.count+len(sections))*peSectionSize
	if end > p.firstData() {
		return nil, errors.New("append sections: no room in the stub's section table")
	}
	if size := p.field(peHeadersSize); size < uint32(end) {
		p.setField(peHeadersSize, roundUp(uint32(end), p.field(peFileAlign)))
	}
	for _, s := range sections {
		if len(s.name) > peSectionNameSize {
			return nil, fmt.Errorf("append section %q: name over %d bytes", s.name, peSectionNameSize)
		}
		p.append(s)
	}
	p.setField(peChecksum, 0) // firmware does not check it
	return p.data, nil
}

func (p *peFile) append(s section) {
	last := p.data[p.table+(p.count-1)*peSectionSize:]
	lastSize, lastAddress := binary.LittleEndian.Uint32(last[8:]), binary.LittleEndian.Uint32(last[12:])
	align := p.field(peFileAlign)
	p.data = append(p.data, make([]byte, -uint32(len(p.data))&(align-1))...)

	size := max(uint32(len(s.data)), s.memory)
	address := roundUp(lastAddress+lastSize, p.field(peSectionAlign))
	flags := uint32(peReadable | peInitialised)
	if s.code {
		flags = peReadable | peCode
	}
	header := make([]byte, peSectionSize)
	copy(header[:peSectionNameSize], s.name)
	binary.LittleEndian.PutUint32(header[8:], size)
	binary.LittleEndian.PutUint32(header[12:], address)
	binary.LittleEndian.PutUint32(header[16:], roundUp(uint32(len(s.data)), align))
	binary.LittleEndian.PutUint32(header[20:], uint32(len(p.data)))
	binary.LittleEndian.PutUint32(header[36:], flags)
	copy(p.data[p.table+p.count*peSectionSize:], header)

	p.data = append(p.data, s.data...)
	p.data = append(p.data, make([]byte, -uint32(len(p.data))&(align-1))...)
	p.count++
	binary.LittleEndian.PutUint16(p.data[p.header+peSectionCount:], uint16(p.count))
	p.setField(peImageSize, roundUp(address+size, p.field(peSectionAlign)))
}

func roundUp(n, align uint32) uint32 { return (n + align - 1) &^ (align - 1) }
