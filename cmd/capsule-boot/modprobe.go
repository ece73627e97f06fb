package main

import (
	"strings"

	"capsule/internal/kmod"
)

// modprobe loads what the kernel asks for: "-q -- net-pf-40". The exit status is
// the kernel's only answer.
func modprobe(args []string) int {
	set, err := kmod.Open("/")
	if err != nil {
		return 1
	}
	for _, arg := range args {
		if strings.HasPrefix(arg, "-") {
			continue
		}
		if err := set.Load(arg); err != nil {
			return 1
		}
	}
	return 0
}
