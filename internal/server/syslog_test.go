package server

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/lastboot"
)

func writeFile(t *testing.T, path, text string, flags int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|flags, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func systemBox(t *testing.T) *box {
	b := newBox(t, nil)
	b.machine.kernel = "/dev/null"
	if err := os.MkdirAll(b.machine.system, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(b.machine.system, "capsuled.log.1"), "time=2026-01-01T00:00:00Z msg=old\n", 0)
	writeFile(t, filepath.Join(b.machine.system, "capsuled.log"), "time=2026-01-01T00:00:02Z msg=b\nno time\n", 0)
	writeFile(t, filepath.Join(b.machine.system, "containerd.log"), "time=\"2026-01-01T00:00:01Z\" msg=a\n", 0)
	return b
}

func TestSystemLogsAreMerged(t *testing.T) {
	b := systemBox(t)
	for _, c := range []struct {
		service string
		tail    int64
		want    []string
	}{
		{"", -1, []string{"time=2026-01-01T00:00:00Z msg=old\n", "time=\"2026-01-01T00:00:01Z\" msg=a\n", "time=2026-01-01T00:00:02Z msg=b\n", "no time\n"}},
		{"", 2, []string{"time=2026-01-01T00:00:02Z msg=b\n", "no time\n"}},
		{"containerd", -1, []string{"time=\"2026-01-01T00:00:01Z\" msg=a\n"}},
		{"kernel", -1, nil},
	} {
		stream, err := capsulev1.NewCapsuleServiceClient(b.dial(t, capsulev1.Role_ROLE_READER)).Logs(limit(t), &capsulev1.CapsuleServiceLogsRequest{Service: c.service, Tail: c.tail})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(r.Data))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%q, tail %d:\n%s", c.service, c.tail, diff)
		}
	}
}

// systemLines are all of an answer, "service: text".
func systemLines(t *testing.T, b *box, req *capsulev1.CapsuleServiceLogsRequest) (lines []string) {
	t.Helper()
	stream, err := capsulev1.NewCapsuleServiceClient(b.dial(t, capsulev1.Role_ROLE_READER)).Logs(limit(t), req)
	if err != nil {
		t.Fatal(err)
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return lines
		}
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, r.Service+": "+strings.TrimSpace(string(r.Data)))
	}
}

// What earlier boots left is there, each begins with its mark, and of the kernel's
// lines of this boot those that its ring still has are there once.
func TestSystemLogsReachBeforeThisBoot(t *testing.T) {
	b := systemBox(t)
	old := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	kept := func(name string, lines ...lastboot.Line) {
		text := ""
		for _, l := range lines {
			text += l.String()
		}
		writeFile(t, filepath.Join(b.machine.system, name), text, 0)
	}
	now := time.Now()
	kept("boots.log", lastboot.Line{Time: old, Boot: "old", Text: "start of v1"},
		lastboot.Line{Time: now.Add(time.Hour), Boot: lastboot.ThisBoot(), Text: "start of v2"}) // noted before the clock was set
	kept("pid1.log", lastboot.Line{Time: old.Add(500 * time.Millisecond), Boot: "old", Text: "0.500s mounts done"})
	kept("kernel.log", lastboot.Line{Time: old.Add(time.Second / 4), Boot: "old", Number: 339, Text: "Linux version 1"},
		lastboot.Line{Time: now, Boot: lastboot.ThisBoot(), Number: 338, Text: "no more in the ring"},
		lastboot.Line{Time: now, Boot: lastboot.ThisBoot(), Number: 339, Text: "twice"})
	kept("panic.log", lastboot.Line{Time: old.Add(time.Minute), Boot: "old", Text: "Kernel panic - not syncing: x"})
	b.machine.kernel = filepath.Join(t.TempDir(), "kmsg")
	writeFile(t, b.machine.kernel, "6,339,1000000,-;in the ring\n", 0)

	want := []string{"boots: start of v1", "kernel: Linux version 1", "kernel: Kernel panic - not syncing: x",
		"boots: start of v2", "kernel: in the ring", "kernel: no more in the ring"}
	if diff := cmp.Diff(want, systemLines(t, b, &capsulev1.CapsuleServiceLogsRequest{Service: "kernel", Tail: -1})); diff != "" {
		t.Error(diff)
	}
	want = []string{"boots: start of v2", "kernel: in the ring", "kernel: no more in the ring"}
	if diff := cmp.Diff(want, systemLines(t, b, &capsulev1.CapsuleServiceLogsRequest{Service: "kernel", Tail: -1, ThisBoot: true})); diff != "" {
		t.Error(diff)
	}
	want = []string{"pid1: 0.500s mounts done", "containerd: time=\"2026-01-01T00:00:01Z\" msg=a", "capsuled: time=2026-01-01T00:00:02Z msg=b", "capsuled: no time",
		"kernel: Kernel panic - not syncing: x"}
	got := systemLines(t, b, &capsulev1.CapsuleServiceLogsRequest{Tail: -1, Since: timestamppb.New(old.Add(500 * time.Millisecond))})
	if diff := cmp.Diff(want, got[:min(len(got), len(want))]); diff != "" {
		t.Error(diff)
	}
	want = []string{"boots: start of v1", "boots: start of v2"}
	if diff := cmp.Diff(want, systemLines(t, b, &capsulev1.CapsuleServiceLogsRequest{Service: "boots", Tail: -1})); diff != "" {
		t.Error(diff)
	}
}

func TestSystemLogIsFollowedThroughRotation(t *testing.T) {
	b := systemBox(t)
	stream, err := capsulev1.NewCapsuleServiceClient(b.dial(t, capsulev1.Role_ROLE_READER)).Logs(limit(t), &capsulev1.CapsuleServiceLogsRequest{Service: "capsuled", Tail: 1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	want := func(text string) {
		t.Helper()
		if r, err := stream.Recv(); err != nil || string(r.Data) != text {
			t.Fatalf("got %v, %v, want %q", r, err, text)
		}
	}
	path := filepath.Join(b.machine.system, "capsuled.log")
	want("no time\n")
	writeFile(t, path, "more\n", os.O_APPEND)
	want("more\n")
	writeFile(t, path, "last of the old\n", os.O_APPEND)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, "first of the new\n", 0)
	want("last of the old\n")
	want("first of the new\n")
}

func TestKernelLine(t *testing.T) {
	boot := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	got, number, ok := kernelLine([]byte("6,339,5140900,-;NET: Registered protocol; family 10\n SUBSYSTEM=net\n"), boot)
	want := sysLine{time: boot.Add(5140900 * time.Microsecond), service: "kernel", data: []byte("NET: Registered protocol; family 10\n")}
	if !ok || number != 339 || !cmp.Equal(want, got, cmp.AllowUnexported(sysLine{})) {
		t.Errorf("got %+v, %v", got, ok)
	}
}

func FuzzKernelLine(f *testing.F) {
	f.Add([]byte("6,339,5140900,-;text\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, _, ok := kernelLine(data, time.Time{}); ok && (len(l.data) == 0 || l.data[len(l.data)-1] != '\n') {
			t.Fatalf("%q", l.data)
		}
	})
}
