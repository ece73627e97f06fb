package qemu

// hypervisorTCG is how QEMU's own emulation names itself (CPUID leaf 0x40000000,
// target/i386/cpu.c, "TCGTCGTCGTCG").
const hypervisorTCG = "TCGTCGTCGTCG"

// Emulated tells that this machine itself runs on a processor that QEMU
// emulates: a microVM in it is emulated twice.
func Emulated() bool { return hypervisor() == hypervisorTCG }
