package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestParseMark(t *testing.T) {
	for line, want := range map[string]*mark{
		"[   12.345678] bench: ordered":                                             {12345678 * time.Microsecond, "ordered", map[string]string{}},
		"peer login: [    9.063872] bench: able init=4774278 at=8736358 ":           {9063872 * time.Microsecond, "able", map[string]string{"init": "4774278", "at": "8736358"}},
		`[  101.000001] bench: container name=c-1 created="2026-01-01T00:00:00.5Z"`: {101000001 * time.Microsecond, "container", map[string]string{"name": "c-1", "created": `"2026-01-01T00:00:00.5Z"`}},
		"[    1.000000] bench: failed line=12 why=no_such_image":                    {time.Second, "failed", map[string]string{"line": "12", "why": "no_such_image"}},
		"[    1.000000] systemd[1]: bench: ordered":                                 nil,
		"bench: ordered":         nil,
		"[    1.00000":           nil,
		"[ 1.1] bench: Two Wor=": nil,
		"":                       nil,
	} {
		got, ok := parseMark(line)
		if ok != (want != nil) {
			t.Errorf("%q: a mark: %v", line, ok)
		} else if ok {
			if diff := cmp.Diff(*want, got, cmp.AllowUnexported(mark{})); diff != "" {
				t.Errorf("%q:\n%s", line, diff)
			}
		}
	}
}

func FuzzParseMark(f *testing.F) {
	f.Add("[    9.063872] bench: container name=c-1 created=\"2026-01-01T00:00:00Z\" started= finished=1 running=true")
	f.Add("[99999999999999999999.9] bench: used kib=9e999")
	f.Fuzz(func(t *testing.T, line string) {
		m, ok := parseMark(line)
		if !ok {
			return
		}
		if m.at < 0 || m.kind == "" {
			t.Errorf("%q: %+v", line, m)
		}
		if c, err := parseContainer(m); err == nil && c.running && m.fields["running"] != "true" {
			t.Errorf("%q: %+v", line, c)
		}
	})
}

// heard is what a peer's console told.
func heard(t *testing.T, console string) record {
	t.Helper()
	r, wasCut, err := hearPeer(strings.NewReader(console), func(mark) bool { return false })
	if err != nil || wasCut {
		t.Fatal(wasCut, err)
	}
	return r
}

func TestHear(t *testing.T) {
	const console = "[ 1.0] bench: begin what=c-0\r\nnoise\r\n[ 1.5] bench: acknowledged\r\n[ 9.0] bench: end what=c-0\r\n"
	r, wasCut, err := hearPeer(strings.NewReader(console), func(m mark) bool { return m.kind == "acknowledged" })
	if err != nil || !wasCut || len(r.marks) != 2 || strings.Contains(r.console, "end") {
		t.Errorf("%+v, %v, %v", r, wasCut, err)
	}
	if took, err := heard(t, console).span("c-0"); took != 8*time.Second || err != nil {
		t.Error(took, err)
	}
	if _, err := r.span("c-0"); err == nil {
		t.Error("a command without an end was accepted")
	}
	_, _, err = hearPeer(strings.NewReader("[ 1.0] bench: failed line=7 why=no_space\n"), func(mark) bool { return false })
	if err == nil || !strings.Contains(err.Error(), "line 7 fails: no_space") {
		t.Error(err)
	}
	if _, _, err := hearPeer(strings.NewReader(strings.Repeat("a long line\n", 2*mib)), func(mark) bool { return false }); err == nil {
		t.Error("a console without an end was accepted")
	}
}

const told = `[    5.1] bench: able init=2100000 at=5000000
[    6.0] bench: begin what=c-0
[    6.9] bench: end what=c-0
[    6.9] bench: container name=c-0 created="2026-01-01T00:00:06.1Z" started="2026-01-01T00:00:06.7Z" finished="0001-01-01T00:00:00Z" running=true
[    7.0] bench: container name=c-9 absent=1
[    8.0] bench: clock now=1767225608.250000 up=8.25
[    8.1] bench: used what=0 kib=102400
[    9.0] bench: ordered
[   11.5] reboot: Restarting system
`

func TestRecord(t *testing.T) {
	r := heard(t, told)
	init, able, err := r.able()
	if init != 2100*time.Millisecond || able != 5*time.Second || err != nil {
		t.Error(init, able, err)
	}
	if up, err := r.serviceUp("c-0"); up.Round(time.Millisecond) != 6700*time.Millisecond || err != nil {
		t.Error(up, err)
	}
	for _, name := range []string{"c-9", "other"} {
		if _, err := r.serviceUp(name); err == nil {
			t.Errorf("container %q does not run", name)
		}
	}
	if down, err := r.wayDown(); down != 2500*time.Millisecond || err != nil {
		t.Error(down, err)
	}
	if used, err := r.used("0"); used != 100 || err != nil {
		t.Error(used, err)
	}
	if _, err := r.used("5"); err == nil {
		t.Error("memory that was not told was accepted")
	}
	if _, _, err := heard(t, "[ 5.1] bench: able init=2100000 at=0\n").able(); err == nil {
		t.Error("an engine that never served was accepted")
	}
	if _, err := r.starts(); err == nil {
		t.Error("one start of six was accepted")
	}
}

// look is a mark about a container that was started at a second.
func look(name, started, finished string) string {
	at := func(second string) string { return `"2026-01-01T00:00:` + second + `Z"` }
	return "[ 1.0] bench: container name=" + name + " created=" + at("00") + " started=" + at(started) + " finished=" + at(finished) + " running=true\n"
}

func TestEnding(t *testing.T) {
	var b strings.Builder
	for _, what := range []string{"restart", "kill"} {
		b.WriteString("[ 1.0] bench: event what=" + what + "\n")
		for _, second := range []string{"10", "20"} {
			for _, name := range []string{"c-1", "c-2", "c-3", "c-4", "c-5"} {
				if what == "restart" && name <= "c-2" && second == "20" {
					b.WriteString(look(name, "20", "17"))
				} else {
					b.WriteString(look(name, "10", "00"))
				}
			}
			b.WriteString("[ 2.0] bench: begin what=" + what + "\n[ 2.5] bench: end what=" + what + "\n")
		}
	}
	r := heard(t, b.String())
	for what, want := range map[string]ending{"restart": {anew: 2, away: 3, answers: 0.5}, "kill": {answers: 0.5}} {
		got, err := r.ending(what)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(ending{})); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", what, err, diff)
		}
	}
	if _, err := r.ending("live-kill"); err == nil {
		t.Error("an end that was not told of was accepted")
	}
	was := container{running: true, started: time.Unix(100, 0)}
	for name, tt := range map[string]struct {
		before, after container
		want          string
	}{
		"runs no more":           {was, container{}, "{0 1 0 0}"},
		"ran no more before":     {container{}, container{}, "{0 0 0 0}"},
		"its end was not stored": {was, container{running: true, started: time.Unix(110, 0)}, "{1 0 NaN 0}"},
	} {
		e, err := compare(map[string]container{"c-1": tt.before}, map[string]container{"c-1": tt.after})
		if got := fmt.Sprint(e); err != nil || got != tt.want {
			t.Errorf("%s: %s, want %s, %v", name, got, tt.want, err)
		}
	}
	if _, err := compare(map[string]container{"c-1": was}, nil); err == nil {
		t.Error("a look that lacks containers was accepted")
	}
}

func TestCuts(t *testing.T) {
	var c cuts
	web := strings.ReplaceAll(told, "c-0", "web")
	for _, console := range []string{
		web + look("late-1", "07", "00"),
		web + "[ 7.0] bench: container name=late-1 absent=1\n",
		"[ 7.0] bench: container name=web absent=1\n[ 7.0] bench: container name=late-1 absent=1\n",
	} {
		if err := c.add(heard(t, console), late(1)); err != nil {
			t.Fatal(err)
		}
	}
	if c.back != 2 || c.kept != 1 || len(c.up) != 2 || c.middle() < 6.69 || c.middle() > 6.71 {
		t.Errorf("%+v", c)
	}
}

func TestComparison(t *testing.T) {
	var c comparison
	c.say("system", "v1", [...]string{"Docker 26", "Podman 5"})
	c.add("boot", "%.1f s", 2, [...]float64{5, 30})
	c.add("loss", "%.0f", 8, [...]float64{2, 8})
	c.add("gone", "%.0f", 0, [...]float64{5, none})
	const want = `|  | capsule | Docker | Podman | Docker ÷ capsule | Podman ÷ capsule |
|---|---|---|---|---|---|
| system | v1 | Docker 26 | Podman 5 |  |  |
| boot | 2.0 s | 5.0 s | 30.0 s | 2.5 | 15 |
| loss | 8 | 2 | 8 | 0.25 | 1.0 |
| gone | 0 | 5 | — |  |  |
`
	if diff := cmp.Diff(want, c.String()); diff != "" {
		t.Error(diff)
	}
	const page = "a\n<!-- figures: x -->\nold\n<!-- end: x -->\nb\n"
	got, err := replaceFigures(page, "x", "new\n")
	if diff := cmp.Diff("a\n<!-- figures: x -->\nnew\n<!-- end: x -->\nb\n", got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, bad := range []string{"", "<!-- figures: x -->\n", "<!-- end: x -->\n<!-- figures: x -->\n"} {
		if _, err := replaceFigures(bad, "x", "new\n"); err == nil {
			t.Errorf("%q has no place, and was changed", bad)
		}
	}
}

// The page has a place for the table of each part with peers.
func TestPlaces(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("../..", page))
	if err != nil {
		t.Fatal(err)
	}
	places := 0
	for _, p := range parts {
		if !p.wanted(allPeers) {
			continue
		}
		places++
		if _, err := replaceFigures(string(text), p.name, ""); err != nil {
			t.Error(err)
		}
		if !strings.Contains(string(text), p.method+"\n\n"+figuresBegin(p.name)) {
			t.Errorf("the table of %s does not follow its method", p.name)
		}
	}
	if places != 8 {
		t.Errorf("%d parts have peers, want 8", places)
	}
}

func TestWanted(t *testing.T) {
	boot, peersBoot := part{name: "boot"}, part{name: "peers-boot"}
	for only, want := range map[string][2]bool{
		"": {true, true}, "boot": {true, false}, "peers": {false, true}, "size,peers-boot": {false, true}, "peers-size": {false, false},
	} {
		if got := [2]bool{boot.wanted(only), peersBoot.wanted(only)}; got != want {
			t.Errorf("%q: %v", only, got)
		}
	}
}

// The scripts are bash, and each engine has all that is called.
func TestPeerScripts(t *testing.T) {
	for _, p := range peers {
		script := p.Files["usr/lib/bench/engine"] + p.Files["usr/lib/bench/run"]
		cmd := exec.Command("bash", "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", p.title, err, out)
		}
		for _, function := range []string{"load", "start", "keep", "state", "count", "since", "daemons"} {
			if !strings.Contains(p.Files["usr/lib/bench/engine"], "\n"+function+"() {") {
				t.Errorf("%s has no function %s", p.title, function)
			}
		}
		for i, e := range endings {
			what := e.peer[0]
			if p.title == peers[1].title {
				what = e.peer[1]
			}
			if what != "" && !strings.Contains(script, "event "+what+" ") {
				t.Errorf("%s never does ending %d, %q", p.title, i, what)
			}
		}
		for _, scenario := range []string{"setup", "boot", "start", "memory", "fifty", "daemon", "reboot", "back", "cut"} {
			if !strings.Contains(script, "\n"+scenario+")\n") {
				t.Errorf("no scenario %q", scenario)
			}
		}
	}
}

// What is loaded by Docker is an archive that its own format's readers take.
func TestDockerManifest(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "web")
	if err := os.WriteFile(program, []byte("\x7fELF"), 0o755); err != nil {
		t.Fatal(err)
	}
	packed := filepath.Join(dir, archiveFile)
	if out, err := exec.Command("go", "run", "../../examples/pack", "-name", exampleImage, "-o", packed, program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	archive, err := os.ReadFile(packed)
	if err != nil {
		t.Fatal(err)
	}
	got, err := withDockerManifest(archive, exampleImage)
	if err != nil {
		t.Fatal(err)
	}
	image, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(got)), nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil || config.Config.Entrypoint[0] != "/web" {
		t.Errorf("%+v, %v", config, err)
	}
	var names []string
	for r := tar.NewReader(bytes.NewReader(got)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if len(got)%512 != 0 || names[len(names)-1] != "manifest.json" || len(names) != 6 {
		t.Errorf("%d bytes, %q", len(got), names)
	}
	if _, err := withDockerManifest(got[:1024], exampleImage); err == nil {
		t.Error("an archive without an index was accepted")
	}
}

// The peers' machine is that of lab, but for what is about the firmware and the way
// to the machine.
func TestPeerArguments(t *testing.T) {
	args := strings.Join(peerMachine{peer: peers[0], debian: debian{Disk: "/d"}, memory: peerMemory, icount: true, scenario: "boot"}.arguments(), " ")
	lab, err := os.ReadFile("../../internal/lab/qemu.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, same := range []string{"virtio-net-pci,netdev=net0,id=nic0,romfile=", "virtio-rng-pci", "i6300esb", "if=none,id=disk,format=raw,discard=unmap,detect-zeroes=unmap,cache=", "virtio-blk-pci,drive=disk", "q35"} {
		if !strings.Contains(string(lab), same) || !strings.Contains(args, same) {
			t.Errorf("%q is not of both machines", same)
		}
	}
	if !strings.Contains(args, "-m 1024M") || !strings.Contains(args, "-icount shift=0") || !strings.Contains(args, "snapshot=on") {
		t.Error(args)
	}
}

// Lines as process 1 of a capsule writes them.
func TestWayDownOfCapsule(t *testing.T) {
	const console = "capsule    98.100s restart of workload web\r\ncapsule   100.250s restart\r\ncapsule   101.000s storage: after 700ms\r\ncapsule   102.750s restart after 2.5s\r\n"
	begin, err1 := stamp(console, downBegins)
	end, err2 := stamp(console, downEnds)
	if err := errors.Join(err1, err2); err != nil || end-begin != 2500*time.Millisecond {
		t.Error(begin, end, err)
	}
}
