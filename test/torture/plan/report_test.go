package plan

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"capsule/test/campaign"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares with what a file of testdata holds.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: %s", name, diff)
	}
}

func kinds(t *testing.T, names string) []Kind {
	t.Helper()
	list, err := Choose(names)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func summary(t *testing.T) Summary {
	return Summary{
		Version: "v1.2.3", Code: "abc1234", Date: time.Date(2026, 11, 30, 20, 0, 0, 0, time.UTC), Seed: 7,
		Kinds: kinds(t, "daemon,perm,power,link"), Accel: "tcg", Minutes: 60,
		LeftOut: []string{"`shim`: the capsule has no debug session"},
		Results: []Result{
			{Fault: Fault{Kind: Daemon}, At: 5 * time.Second, Recovered: 1500 * time.Millisecond, Silence: 400 * time.Millisecond},
			{Fault: Fault{Kind: Power}, At: 40 * time.Second, Recovered: 30 * time.Second, Silence: 31 * time.Second},
			{
				Fault: Fault{Kind: Perm, Hold: 20 * time.Second, Pick: 4, During: Daemon}, At: 90 * time.Second, Lasted: 25 * time.Second,
				Problem: "not well within 2m30s:\n\"ledger\" is\texited",
			},
			{Fault: Fault{Kind: Power}, At: 400 * time.Second, Recovered: 42 * time.Second, Silence: 43 * time.Second},
		},
		Ledgers: []Ledger{
			{Name: "ledger", Kind: "Container", Acked: 1200, Starts: 5, Checks: 4},
			{Name: "ledger-vm", Kind: "MicroVM", Acked: 34, Starts: 2, Checks: 3, Lost: []string{"record 30 was acknowledged, 29 is the last"}},
		},
	}
}

func TestSection(t *testing.T) {
	well := summary(t)
	well.LeftOut, well.Results, well.Ledgers = nil, well.Results[:2], well.Ledgers[:1]
	ended := summary(t)
	ended.Ended = "the machine did not come back:\n" + strings.Repeat("x", 2*lineMax)
	for name, s := range map[string]Summary{"none": {}, "well": well, "failed": summary(t), "ended": ended} {
		golden(t, name+".md", string(s.Section()))
	}
}

// The manual tells of the faults that there are. -update writes them there, and leaves
// what the last campaign found.
func TestManual(t *testing.T) {
	const file = "../../../docs/reliability.md"
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text, ok := campaign.Section(page, "torture")
	_, found, _ := bytes.Cut(text, []byte(last))
	want := append(head(), found...)
	if !ok {
		want = Summary{}.Section()
	}
	if *update {
		if err := os.WriteFile(file, campaign.PutSection(page, "torture", want), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(want), string(text)); diff != "" {
		t.Errorf("%s: %s", file, diff)
	}
}

func TestCounts(t *testing.T) {
	s := summary(t)
	if s.Failed() != 1 || s.Lost() != 1 || s.acked() != 1234 {
		t.Errorf("%d failed, %d lost of %d", s.Failed(), s.Lost(), s.acked())
	}
}
