package qemu

import "encoding/binary"

const (
	leafFeatures   = 1
	leafHypervisor = 0x4000_0000
	hypervisorBit  = 1 << 31 // of ECX of leafFeatures: there is one
)

// cpuid runs the instruction of that name.
func cpuid(leaf uint32) (eax, ebx, ecx, edx uint32)

// hypervisor below this system, by its own name; "" on a bare machine.
func hypervisor() string {
	if _, _, features, _ := cpuid(leafFeatures); features&hypervisorBit == 0 {
		return ""
	}
	_, ebx, ecx, edx := cpuid(leafHypervisor)
	var name []byte
	for _, part := range []uint32{ebx, ecx, edx} {
		name = binary.LittleEndian.AppendUint32(name, part)
	}
	return string(name)
}
