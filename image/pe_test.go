package main

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// smallPE is a PE32+ file with one section at file offset 0x400.
func smallPE() []byte {
	data := make([]byte, 0x600)
	copy(data, "MZ")
	const header = 0x80
	binary.LittleEndian.PutUint32(data[peOffsetAt:], header)
	copy(data[header:], peSignature)
	binary.LittleEndian.PutUint16(data[header+4:], pe.IMAGE_FILE_MACHINE_AMD64)
	binary.LittleEndian.PutUint16(data[header+peSectionCount:], 1)
	binary.LittleEndian.PutUint16(data[header+peOptionalSize:], 240)
	optional := data[header+peHeaderSize:]
	binary.LittleEndian.PutUint16(optional, pePlusMagic)
	binary.LittleEndian.PutUint32(optional[peSectionAlign:], 0x1000)
	binary.LittleEndian.PutUint32(optional[peFileAlign:], 0x200)
	binary.LittleEndian.PutUint32(optional[peImageSize:], 0x3000)
	binary.LittleEndian.PutUint32(optional[peHeadersSize:], 0x400)
	binary.LittleEndian.PutUint32(optional[108:], 16) // data directories
	section := optional[240:]
	copy(section, ".text")
	for at, value := range map[int]uint32{8: 0x1800, 12: 0x1000, 16: 0x200, 20: 0x400, 36: peReadable | peCode} {
		binary.LittleEndian.PutUint32(section[at:], value)
	}
	return data
}

func TestAppendSections(t *testing.T) {
	kernel := bytes.Repeat([]byte("kernel"), 1000)
	image, err := appendSections(smallPE(), []section{
		{name: ".cmdline", data: []byte("quiet")},
		{name: ".linux", data: kernel, memory: 0x9000, code: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	type place struct {
		Name                string
		Address, Size, Code uint32
	}
	var got []place
	for _, s := range f.Sections {
		got = append(got, place{s.Name, s.VirtualAddress, s.VirtualSize, s.Characteristics & peCode})
		if s.Offset%0x200 != 0 || s.VirtualAddress%0x1000 != 0 {
			t.Errorf("section %s is at %#x in the file and %#x in memory: not aligned", s.Name, s.Offset, s.VirtualAddress)
		}
	}
	want := []place{{".text", 0x1000, 0x1800, peCode}, {".cmdline", 0x3000, 5, 0}, {".linux", 0x4000, 0x9000, peCode}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sections (-want +got):\n%s", diff)
	}
	if size := f.OptionalHeader.(*pe.OptionalHeader64).SizeOfImage; size != 0xd000 {
		t.Errorf("image takes %#x bytes in memory, want 0xd000", size)
	}
	data, err := f.Sections[2].Data()
	if err != nil || !bytes.HasPrefix(data, kernel) {
		t.Errorf("kernel is not in its section: %v", err)
	}
}

func TestAppendSectionsRefuses(t *testing.T) {
	many := make([]section, 20) // the table has room for some
	for i := range many {
		many[i].name = "s"
	}
	for _, test := range []struct {
		name     string
		stub     []byte
		sections []section
		want     string
	}{
		{"full table", smallPE(), many, "no room"},
		{"long name", smallPE(), []section{{name: ".ninechars"}}, "name over"},
		{"empty file", nil, nil, "too short"},
		{"no PE file", make([]byte, 4096), nil, "not PE32+"},
	} {
		if _, err := appendSections(test.stub, test.sections); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", test.name, err, test.want)
		}
	}
}

func FuzzParsePE(f *testing.F) {
	f.Add(smallPE())
	f.Add([]byte("MZ"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = appendSections(data, []section{{name: ".x", data: []byte("x")}})
	})
}
