package qemu

// EmulatedCPU is the processor of an emulated machine: all that QEMU knows of, but for
//   - the string instructions that kernels take for the quickest way to copy and to clear
//     memory (erms, fsrm): translated, they go byte by byte, and a boot took twice the time;
//   - cmpxchg16b (cx16): QEMU 7.2 takes the flags before it from what an earlier block of
//     code left, and puts a part of an address in their place. An interrupt right after it
//     restores them so, and the kernel, whose allocator is made of that instruction, may
//     panic, or stay with its interrupts off (docs/decisions/0004-tests-on-our-own-kernel.md).
const EmulatedCPU = "max,-erms,-fsrm,-cx16"

// EmulatedAccel emulates a machine whose kernel changes its own code while it runs, as
// Debian's does (static keys). With a thread for each processor, one of QEMU 7.2 goes on
// with code that another one has just changed, and the kernel dies of a breakpoint that is
// there no more. One thread for all also takes a tenth less of this computer's time.
const EmulatedAccel = "tcg,thread=single"
