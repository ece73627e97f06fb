package logs

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestManualQuotesLimit checks the log's limit in the manual.
func TestManualQuotesLimit(t *testing.T) {
	page, err := os.ReadFile("../../docs/workloads.md")
	if err != nil {
		t.Fatal(err)
	}
	row := fmt.Sprintf("| log of a workload | %d MiB |", DefaultLimits.FileBytes*int64(DefaultLimits.Files)>>20)
	if !strings.Contains(string(page), row) {
		t.Errorf("docs/workloads.md lacks %q", row)
	}
}
