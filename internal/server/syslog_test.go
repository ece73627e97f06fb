package server

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	capsulev1 "capsule/api/capsule/v1"
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
	got, ok := kernelLine([]byte("6,339,5140900,-;NET: Registered protocol; family 10\n SUBSYSTEM=net\n"), boot)
	want := sysLine{time: boot.Add(5140900 * time.Microsecond), service: "kernel", data: []byte("NET: Registered protocol; family 10\n")}
	if !ok || !cmp.Equal(want, got, cmp.AllowUnexported(sysLine{})) {
		t.Errorf("got %+v, %v", got, ok)
	}
}

func FuzzKernelLine(f *testing.F) {
	f.Add([]byte("6,339,5140900,-;text\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, ok := kernelLine(data, time.Time{}); ok && (len(l.data) == 0 || l.data[len(l.data)-1] != '\n') {
			t.Fatalf("%q", l.data)
		}
	})
}
