package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

// The measured guest is the driver's: all that it sees, and no file of another
// process.
func TestAsDriver(t *testing.T) {
	lines, err := os.ReadFile(filepath.Join("../..", driverArguments))
	if err != nil {
		t.Fatal(err)
	}
	g, err := asDriver(string(lines), "/tmp/x")
	if err != nil {
		t.Fatal(err)
	}
	devices := func(words []string) (found []string) {
		for i, word := range words {
			if word == "-device" || word == "-machine" || word == "-m" || word == "-object" {
				found = append(found, words[i+1])
			}
		}
		return found
	}
	want := devices(strings.Split(string(lines), "\n"))
	if diff := cmp.Diff(want, devices(g.machine)); diff != "" || len(want) < 8 {
		t.Errorf("%d devices:\n%s", len(want), diff)
	}
	if !strings.Contains(g.cmdline, "capsule.channel=port") || slices.Contains(g.machine, "-S") {
		t.Errorf("%q %q", g.cmdline, g.machine)
	}
	for _, file := range []string{"filename=/tmp/x/image", "filename=/tmp/x/disk", "path=/tmp/x/agent"} {
		if !strings.Contains(strings.Join(g.machine, " "), file) {
			t.Errorf("%q lacks %q", g.machine, file)
		}
	}
	if _, err := asDriver("qemu\n-append\nquiet\n-chardev\nsocket,id=new,fd=12\n", "/tmp/x"); err == nil {
		t.Error("a line that the benchmark does not serve was accepted")
	}
}

// Consoles of guests, as they came.
func TestConsoles(t *testing.T) {
	const ours = "[    0.046916] clock: counter=86472241 uptime=46704313\ncapsule-guest: ready after 54ms\n"
	c, err := parseClocks(ours)
	if err != nil {
		t.Fatal(err)
	}
	if _, answers, err := agentMoments(ours); err != nil || c.ofUptime(answers) != 93767928*time.Nanosecond {
		t.Errorf("%v, %v", c.ofUptime(answers), err)
	}
	if _, _, err := agentMoments("capsule-guest: find virtio-serial port\n"); err == nil {
		t.Error("an agent that does not serve was accepted")
	}
	const debian = "[    9.063872] bench: init=4774278 serves=8736358 banner=SSH-2.0-OpenSSH_10.0p2 Debian-7\n"
	init, serves, err := debianMoments(debian)
	if err != nil || init != 4774278*time.Microsecond || serves != 8736358*time.Microsecond {
		t.Errorf("%v %v %v", init, serves, err)
	}
	if _, _, err := debianMoments("bench: init=4774278 serves=0 banner=\n"); err == nil {
		t.Error("an sshd without a banner was accepted")
	}
	if _, err := stamp("<6>[    0.014900] Unpacking initramfs...", unpackLine); err != nil {
		t.Error(err)
	}
}

// The kernel wants each part at a multiple of four.
func TestArchive(t *testing.T) {
	got := archive("clock", []byte("12345"))
	name := 110
	if len(got)%4 != 0 || string(got[:6]) != "070701" || string(got[name:name+6]) != "clock\x00" || string(got[name+6:name+11]) != "12345" {
		t.Errorf("%q", got)
	}
	if !bytes.Contains(got, []byte("TRAILER!!!\x00")) {
		t.Errorf("no end: %q", got)
	}
}

func TestKernelEntry(t *testing.T) {
	const entry = 0x1000c43
	elf := make([]byte, 4096)
	copy(elf, "\x7fELF")
	binary.LittleEndian.PutUint64(elf[elfEntry:], entry)
	var packed bytes.Buffer
	w, err := zstd.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(elf); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	image := make([]byte, 2*sectorBytes+100)
	image[setupSectors] = 1
	copy(image[bootMagic:], "HdrS")
	binary.LittleEndian.PutUint32(image[payloadOffset:], 100)
	binary.LittleEndian.PutUint32(image[payloadLength:], uint32(packed.Len()))
	image = append(image, packed.Bytes()...)
	for name, file := range map[string][]byte{"ELF": elf, "bzImage": image} {
		if got, err := entryOf(file); err != nil || got != entry {
			t.Errorf("%s: %#x, %v", name, got, err)
		}
	}
	for name, file := range map[string][]byte{"nothing": nil, "text": []byte("hello"), "cut off": image[:len(image)-1]} {
		if _, err := entryOf(file); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// The other side of gdb's protocol is played here.
func TestRunTo(t *testing.T) {
	for name, tt := range map[string]struct{ stopped, wantErr string }{
		"stops":   {"T05thread:01;", ""},
		"is gone": {"W00", `answers "W00" to "c"`},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer theirs.Close()
			result := make(chan error, 1)
			go func() { result <- runTo(t.Context(), ours, 0x1000123) }()
			in := bufio.NewReader(theirs)
			for _, step := range [][2]string{{"Z1,1000123,1", "OK"}, {"c", tt.stopped}} {
				if got, err := readPacket(in); err != nil || got != step[0] {
					t.Fatalf("%q, %v, want %q", got, err, step[0])
				}
				if _, err := theirs.Write([]byte("+")); err != nil {
					t.Fatal(err)
				}
				if err := sendPacket(theirs, step[1]); err != nil {
					t.Fatal(err)
				}
			}
			if tt.wantErr == "" {
				if plus, err := in.ReadByte(); err != nil || plus != '+' { // of the first answer
					t.Fatalf("%q, %v", plus, err)
				}
			}
			switch err := <-result; {
			case tt.wantErr == "" && err != nil, tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)):
				t.Errorf("%v, want %q", err, tt.wantErr)
			}
		})
	}
	if got := checksum("OK"); got != 0x9a {
		t.Errorf("checksum %#x", got)
	}
}

func TestMetrics(t *testing.T) {
	const out = "goos: linux\nBenchmarkMachines-2   \t 1\t15805597592 ns/op\t 11.19 all-s\t 0.1680 cache-MiB\nPASS\n"
	got, err := metrics(out, "BenchmarkMachines")
	if diff := cmp.Diff(map[string]float64{"ns/op": 15805597592, "all-s": 11.19, "cache-MiB": 0.168}, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := metrics("--- SKIP: BenchmarkMachines-2\nPASS\n", "BenchmarkMachines"); err == nil {
		t.Error("a benchmark that was left out was accepted")
	}
}
