package debug

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestManualQuotesLimits(t *testing.T) {
	page, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("| debug sessions at once | %d, with %d processes and a quarter of the memory, at least %d MiB, together |", SessionsMax, pidsMax, memoryMin>>20)
	if memoryPart != 4 || !strings.Contains(string(page), want) {
		t.Errorf("the manual has no %q", want)
	}
}
