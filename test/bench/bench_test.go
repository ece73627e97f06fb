package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/bundle"
)

func TestSplit(t *testing.T) {
	const log = `time=2026-11-25T10:00:00.000Z level=INFO msg="prepared workload" name=c-10 generation=1 check=1s snapshot=2s
time=2026-11-25T10:00:01.000Z level=INFO msg="prepared workload" name=c-1 generation=1 check=84ms snapshot=1.25s
time=2026-11-25T10:00:02.000Z level=INFO msg="started workload" name=c-1 generation=1 create=612ms start=0s
`
	got, err := split(log, "c-1")
	if err != nil {
		t.Fatal(err)
	}
	want := []time.Duration{84 * time.Millisecond, 1250 * time.Millisecond, 612 * time.Millisecond, 0}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := split(log, "c-10"); err == nil {
		t.Error("a workload that has not started was accepted")
	}
}

// Lines as the kernel's log and a console hold them.
func TestStages(t *testing.T) {
	const text = `capsule-boot: started uptime=2.177
capsule-boot: root of slot_a mounted uptime=4.037
capsule     4.869s capsule 1.2.3 starts
capsule     8.175s perm done in 2.068s
capsule     8.249s capsuled runs as process 188
capsule ready: name=capsule-867e address=- claim=claimed version=1.2.3 slot=slot_a uptime=9.098
capsule ready: name=capsule-867e address=10.0.2.15:50000 claim=claimed version=1.2.3 slot=slot_a uptime=9.221
capsule     9.633s containerd answers and the network is made
`
	want := []string{"2.177", "4.037", "4.869", "8.175", "8.249", "9.098", "9.221", "9.633"}
	var got []string
	for _, s := range stages {
		if m := s.mark.FindStringSubmatch(text); m != nil {
			got = append(got, m[1])
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// The page tells the method by which the program measures, has a table for each
// part, and names parts that there are.
func TestPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for _, p := range parts {
		if !strings.Contains(page, "\n## "+p.title+"\n\n"+p.method+"\n") {
			t.Errorf("the page's section %q lacks the program's method:\n%s", p.title, p.method)
		}
	}
	commands := regexp.MustCompile(`go run \./test/bench -only (\S+)`).FindAllStringSubmatch(page, -1)
	if len(commands) == 0 {
		t.Error("the page does not tell how one part is measured")
	}
	for _, c := range commands {
		for name := range strings.SplitSeq(c[1], ",") {
			if name != allPeers && !slices.Contains(partNames(), name) {
				t.Errorf("%q: no part %q", c[0], name)
			}
		}
	}
}

func TestOutage(t *testing.T) {
	w := &watch{info: make(chan *capsulev1.InfoResponse, 1)}
	old, next := &capsulev1.InfoResponse{Version: "v1"}, &capsulev1.InfoResponse{Version: "v2"}
	w.answered(old)
	if len(w.info) != 0 {
		t.Fatal("an answer before the first reset counts")
	}
	w.reset()
	if _, over := w.over(true); over {
		t.Error("it is over before anything answered")
	}
	w.answered(next)
	w.reset() // what had answered went again
	if len(w.info) != 0 {
		t.Error("an answer of before the reset is left")
	}
	w.answered(next)
	if _, over := w.over(false); over {
		t.Error("it is over with another answer than the one")
	}
	w.answered(old)
	got, over := w.over(true)
	if !over || len(got.resets) != 2 || got.boots() > got.down() || got.first.Before(got.resets[1]) {
		t.Errorf("got %+v, over %v", got, over)
	}
	if len(w.now.resets) != 0 {
		t.Error("the next outage begins with old resets")
	}
}

func TestLacksPieces(t *testing.T) {
	image := func(size int, changed ...int) bundle.Part {
		b := make([]byte, size)
		for _, at := range changed {
			b[at] = 1
		}
		return bundle.NewPart(b)
	}
	const size, piece = 2*bundle.PieceSize + 100, bundle.PieceSize
	unnamed := image(size)
	unnamed.Pieces = ""
	for name, c := range map[string]struct {
		had, want bundle.Part
		bytes     int64
	}{
		"the same":             {image(size), image(size), 0},
		"one piece":            {image(size), image(size, 5), piece},
		"the last, short one":  {image(size), image(size, 2*piece), 100},
		"a longer one":         {image(size), image(size + piece), piece + 100},
		"the other is shorter": {image(piece), image(size), piece + 100},
		"no names of pieces":   {image(size), unnamed, size},
		"nor of the other":     {unnamed, image(size), size},
	} {
		if got := lacksPieces(c.had, c.want); got != c.bytes {
			t.Errorf("%s: %d bytes, want %d", name, got, c.bytes)
		}
	}
}

// As cmd/capsulectl tells it.
func TestSentLine(t *testing.T) {
	got := sentLine.FindStringSubmatch("note\nsent 8.2 MiB of 107.4 MiB; 99.1 MiB were there already\n")
	if diff := cmp.Diff([]string{"8.2 MiB", "107.4 MiB", "99.1 MiB"}, got[1:]); diff != "" {
		t.Error(diff)
	}
}
