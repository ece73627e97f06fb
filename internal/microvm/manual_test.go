package microvm

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"capsule/internal/instance"
)

// TestManualQuotesSizes checks the table of differences in the manual.
func TestManualQuotesSizes(t *testing.T) {
	page, err := os.ReadFile("../../docs/workloads.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range []string{
		fmt.Sprintf("| a limit, by default %d MiB; at least %d MiB |", memoryDefault/mib, memoryMin/mib),
		fmt.Sprintf("| the kernel and the agent inside, at most %d MiB and a %dth of the limit, and QEMU |", memoryGuest/mib, pagesPart),
		fmt.Sprintf("| `resources.disk` | size | `%dGiB`, but at most a quarter of `/perm` |", instance.DiskDefault>>30),
		fmt.Sprintf("| at most %d: each is a disk of the machine |", mountsMax),
	} {
		if !strings.Contains(string(page), words) {
			t.Errorf("docs/workloads.md lacks %q", words)
		}
	}
}
