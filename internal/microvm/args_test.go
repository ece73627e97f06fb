package microvm

import (
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"capsule/internal/workload"
)

var update = flag.Bool("update", false, "rewrite golden files")

// plainMachine is the least that there is.
var plainMachine = machine{
	Program: "/usr/bin/qemu-system-x86_64", Name: "web", MemoryMiB: 576, VCPUs: 2,
	Kernel: "/guest/vmlinux", Initramfs: "/guest/initramfs",
	Image: []int{5, 3, 4}, Disk: 6, Stdout: 7, Stderr: 8, Serial: 9, QMP: 10, Agent: 11,
}

func TestArguments(t *testing.T) {
	full := plainMachine
	full.KVM, full.Agent, full.CID, full.VSock = true, 0, 1003, 11
	full.Volumes = []volumeDisk{{File: 12}, {File: 13, ReadOnly: true}}
	full.MAC, full.Tap = net.HardwareAddr{2, 0xc5, 172, 30, 0, 3}, 14
	many := full
	many.Volumes = []volumeDisk{{File: 12, Block: true}, {File: 13, ReadOnly: true, Block: true}, {File: 15}}
	limited := full
	limited.IO = workload.IO{ReadBytes: 20e6, WriteBytes: 1 << 20, WriteOperations: 100}
	for name, m := range map[string]machine{"plain": plainMachine, "full": full, "many": many, "limited": limited} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(m.arguments(), "\n") + "\n"
			path := filepath.Join("testdata", "args-"+name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The count of slots is that of the devices which take one.
func TestSlots(t *testing.T) {
	m := plainMachine
	for _, change := range []func(){
		func() {},
		func() { m.Agent, m.CID = 0, 1003 },
		func() { m.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 1} },
		func() { m.Volumes = make([]volumeDisk, mountsMax) },
		func() { m.Volumes = []volumeDisk{{}, {}} },
	} {
		change()
		n := 0
		for _, arg := range m.arguments() {
			device, _, _ := strings.Cut(arg, ",")
			if strings.HasPrefix(device, "v") && strings.HasSuffix(device, "-device") {
				n++
			}
		}
		if n != m.slots() {
			t.Errorf("%d slots, %d devices", m.slots(), n)
		}
	}
	if m.slots() != slotsMax {
		t.Errorf("two volumes take %d slots, want %d", m.slots(), slotsMax)
	}
	m.Volumes = make([]volumeDisk, mountsMax)
	if m.slots() >= slotsMax {
		t.Errorf("many volumes take %d slots", m.slots())
	}
}
