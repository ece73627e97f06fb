package pid1

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestManualQuotesShares checks what the manual says of all workloads together.
func TestManualQuotesShares(t *testing.T) {
	page, err := os.ReadFile("../../docs/workloads.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, quote := range []string{
		fmt.Sprintf("never have the last %d MiB and a %dnd of the machine's memory (at most %d GiB)", systemMin/mib, systemPart, systemMax>>30),
		fmt.Sprintf("and %d,%03d for all workloads together", (threadsMax-threadsSystem)/1000, (threadsMax-threadsSystem)%1000),
	} {
		if !strings.Contains(string(page), quote) {
			t.Errorf("docs/workloads.md lacks %q", quote)
		}
	}
}

// TestManualQuotesLogs checks what the manual says of the system's own logs.
func TestManualQuotesLogs(t *testing.T) {
	page, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, quote := range []string{
		fmt.Sprintf("| logs of a service of the capsule | %d MiB, in four files |", logFiles*logFileMax/mib),
		fmt.Sprintf("| lines of the kernel that are kept | %d KiB a minute;", kernelQuota>>10),
	} {
		if !strings.Contains(string(page), quote) {
			t.Errorf("docs/observability.md lacks %q", quote)
		}
	}
}
