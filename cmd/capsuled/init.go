package main

import (
	"os"
	"runtime/debug"

	"capsule/internal/pid1"
)

// goalMemory keeps process 1 small: it allocates next to nothing after the start.
const goalMemory = 16 << 20

// initMachine is the role of process 1. It doesn't return.
func initMachine() {
	debug.SetMemoryLimit(goalMemory)
	_ = os.Setenv("PATH", "/usr/bin:/usr/sbin:/bin:/sbin")
	_ = os.Setenv("HOME", "/root")
	pid1.Run()
}
