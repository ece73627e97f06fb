//go:build !amd64

package qemu

// hypervisor is not asked for where capsules don't run.
func hypervisor() string { return "" }
