package manifest

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestManualQuotesLimits checks the table of limits in the manual.
func TestManualQuotesLimits(t *testing.T) {
	quotes(t, "workloads.md", []string{
		fmt.Sprintf("| a manifest | %s |", strings.Replace(FormatSize(MaxBytes), "MiB", " MiB", 1)),
		fmt.Sprintf("| objects in one apply | %d |", MaxObjects),
		fmt.Sprintf("| ports of a workload | %d |", portsMax),
		fmt.Sprintf("| mounts of a workload | %d |", mountsMax),
		fmt.Sprintf("| variables of a workload | %d |", envMax),
		fmt.Sprintf("| name | %d bytes |", NameMax),
		fmt.Sprintf("by default none; at least %d MiB | a limit, by default 512 MiB; at least %d MiB |", MemoryMin>>20, vmMemoryMin>>20),
		fmt.Sprintf("the number of processors inside: at most %d, and no more than the capsule has |", vmCPUsMax/1000),
		fmt.Sprintf("| mounts | at most %d | at most %d:", mountsMax, vmMountsMax),
		fmt.Sprintf("| `stopGrace` | %.0f min |", GraceMax.Minutes()),
		fmt.Sprintf("| `interval` | `%s` | from the end of a check to the next, `%s` to `%s`;", formatDuration(HealthInterval), formatDuration(HealthIntervalMin), formatDuration(HealthIntervalMax)),
		fmt.Sprintf("| `timeout` | `%s` | a check that takes longer has failed, `%s` to `%s`;", formatDuration(HealthTimeout), formatDuration(HealthTimeoutMin), formatDuration(HealthTimeoutMax)),
		fmt.Sprintf("| `retries` | `%d` | failures in a row that make it unhealthy, at most %d |", HealthRetries, HealthRetriesMax),
		fmt.Sprintf("failures don't count, at most `%s` |", strings.TrimSuffix(HealthPeriodMax.String(), "0m0s")),
		fmt.Sprintf("| `startInterval` | `%s` |", formatDuration(HealthStartInterval)),
		fmt.Sprintf("| names in `dependsOn` | %d |", dependsMax),
	})
	quotes(t, "volumes.md", []string{
		fmt.Sprintf("| size of a volume | %d MiB to %d TiB |", VolumeMin>>20, VolumeMax>>40),
		fmt.Sprintf("rounded up to whole extents of %d MiB", extentBytes>>20),
		fmt.Sprintf("`%s` to `%s`", formatDuration(everyMin), formatDuration(everyMax)),
		fmt.Sprintf("| `snapshots.keep` | `%d` |", keepDefault),
		fmt.Sprintf("| mounts of one workload | %d; of a microVM", mountsMax),
		fmt.Sprintf("| snapshots kept by a schedule | %d |", keepMax),
	})
}

// TestManualNetworks checks the page's examples, and that they are what is shown of
// them where it says so.
func TestManualNetworks(t *testing.T) {
	text, err := os.ReadFile("../../docs/networking.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := 0
	for part := range strings.SplitSeq(string(text), "```yaml\n") {
		example, _, found := strings.Cut(part, "```\n")
		if name, _, _ := strings.Cut(example, "\n"); found && strings.HasSuffix(name, ".yaml") {
			examples++
			if _, err := Decode(name, strings.NewReader(example)); err != nil {
				t.Error(err)
			}
		}
	}
	if examples < 4 {
		t.Errorf("%d examples", examples)
	}
	quotes(t, "networking.md", []string{
		fmt.Sprintf("| ports of a workload, a range counted once | %d |", portsMax),
		fmt.Sprintf("| ports of a workload in ranges that lead to other numbers | %d |", shiftedMax),
	})
}

func quotes(t *testing.T, page string, rows []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if !strings.Contains(string(text), row) {
			t.Errorf("docs/%s lacks %q", page, row)
		}
	}
}
