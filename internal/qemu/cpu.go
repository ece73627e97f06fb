package qemu

// EmulatedCPU is the processor of an emulated machine: all that QEMU knows of, but for
// the string instructions that kernels take for the quickest way to copy and to clear
// memory. Translated, they go byte by byte: a boot took twice the time.
const EmulatedCPU = "max,-erms,-fsrm"
