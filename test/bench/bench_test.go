package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	capsulev1 "capsule/api/capsule/v1"
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
			if !slices.Contains(partNames(), name) {
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

// The kernel image's section that moved is the same; one that changed is not.
func TestLacksSections(t *testing.T) {
	image := func(moved int, initrd string) *io.SectionReader {
		b := make([]byte, 1024+moved)
		copy(b, "MZ")
		le := binary.LittleEndian
		le.PutUint32(b[0x3c:], 64)
		copy(b[64:], "PE\x00\x00\x64\x86\x02\x00")
		for i, data := range []string{strings.Repeat("k", 4096), initrd} {
			h := b[88+40*i:]
			copy(h, []string{".linux", ".initrd"}[i])
			le.PutUint32(h[16:], uint32(len(data)))
			le.PutUint32(h[20:], uint32(len(b)))
			b = append(b, data...)
		}
		return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
	}
	for _, c := range []struct {
		moved  int
		initrd string
		want   int64
	}{{0, "same", 1024}, {512, "same", 1024 + 512}, {0, "diff", 1024 + 4}, {0, "longer", 1024 + 6}} {
		got, err := lacksSections(image(0, "same"), image(c.moved, c.initrd))
		if err != nil || got != c.want {
			t.Errorf("moved by %d, initrd %q: got %d and %v, want %d", c.moved, c.initrd, got, err, c.want)
		}
	}
}
