package qemu

import (
	"os"
	"testing"
)

func TestHypervisor(t *testing.T) {
	name := hypervisor()
	if name != "" && len(name) != 12 {
		t.Errorf("hypervisor %q, want 12 bytes", name)
	}
	if os.Getenv("CAPSULE_TEST_MACHINE") != "" && !Emulated() { // vmexec emulates
		t.Errorf("hypervisor %q, want %q", name, hypervisorTCG)
	}
	t.Logf("hypervisor %q", name)
}
