package network

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// The manual quotes the limits as they are.
func TestManualQuotesLimits(t *testing.T) {
	text, err := os.ReadFile("../../docs/networking.md")
	if err != nil {
		t.Skip("SKIPPED: the test runs without the checkout")
	}
	quotes := []string{
		fmt.Sprintf("| questions that wait for your DNS servers | %d, of one workload %d;", queriesMax, clientQueriesMax),
		fmt.Sprintf("| DNS connections by TCP of one workload | %d |", connectionsMax),
		fmt.Sprintf("| DNS servers of the uplinks that are asked | %d; by a workload with `network: host` %d |", upstreamsMax, nameserversMax),
		fmt.Sprintf("| workloads on the bridge | %d |", workloadsMax),
		fmt.Sprintf("silent for %d ms is overtaken", nextAfter.Milliseconds()),
		fmt.Sprintf("Answers of ours hold\nfor %d s", ownTTL),
		fmt.Sprintf("(%s)", DefaultSubnets.IPv6),
	}
	for _, p := range slices.Concat(private, spare4, spare6) {
		quotes = append(quotes, p.String())
	}
	for _, want := range quotes {
		if !strings.Contains(string(text), want) {
			t.Errorf("docs/networking.md lacks %q", want)
		}
	}
}
