package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
)

// unpack gives the files of an archive.
func unpack(t *testing.T, data []byte) map[string]string {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(zip); ; {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if path.Dir(head.Name) != "box" || head.Mode != 0o600 {
			t.Errorf("file %q, mode %o", head.Name, head.Mode)
		}
		files[path.Base(head.Name)] = string(content)
	}
}

func text(s string) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error { _, err := io.WriteString(w, s); return err }
}

func TestWrite(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	lines := strings.Repeat("0123456789\n", 20)
	entries := []Entry{
		{Name: "good", Text: text("a hunter2 b\n")},
		{Name: "fails", Text: func(context.Context, io.Writer) error { return errors.New("disk of hunter2 is gone") }},
		{Name: "half", Text: func(_ context.Context, w io.Writer) error {
			fmt.Fprint(w, "one\ntw")
			return errors.New("no more")
		}},
		{Name: "panics", Text: func(context.Context, io.Writer) error { panic("test") }},
		{Name: "hangs", Time: 10 * time.Millisecond, Text: func(_ context.Context, w io.Writer) error {
			fmt.Fprint(w, "begun\nha")
			<-release // whatever ctx says
			return nil
		}},
		{Name: "long", Bytes: 50, Text: text(lines)},
		{Name: "newest", Bytes: 50, Newest: true, Text: text(lines + "end\n")},
		{Name: "one", Bytes: 50, Text: text(strings.Repeat("x", 100))},
		{Name: "message", Messages: func(_ context.Context, give func(proto.Message) error) error {
			return errors.Join(give(&v1.Event{Message: "hunter2"}), give(&v1.Event{Message: "b"}))
		}},
		{Name: "last", Text: text("last\n")},
	}
	var out bytes.Buffer
	var steps []string
	o := Options{Folder: "box", Readme: "read me", Secrets: []string{"hunter2"}, Step: func(s string) { steps = append(steps, s) }}
	if err := Write(t.Context(), &out, o, entries); err != nil {
		t.Fatal(err)
	}
	files := unpack(t, out.Bytes())
	ten := strings.Repeat("0123456789\n", 4)
	for name, want := range map[string]string{
		"README.txt": "read me", "good": "a (removed) b\n", "fails.error": "disk of (removed) is gone\n", "half": "one\n", "half.error": "no more\n",
		"hangs": "begun\n", "hangs.error": "hangs: not there within 10ms: context deadline exceeded\n",
		"long": ten + "(cut at 50 bytes)\n", "newest": "(cut at 50 bytes)\n" + ten + "end\n", "one": "(cut at 50 bytes)\n", "last": "last\n",
	} {
		if files[name] != want {
			t.Errorf("%s: got %q, want %q", name, files[name], want)
		}
	}
	if got := files["message"]; strings.Count(got, "\n") != 2 || strings.Contains(got, "hunter2") {
		t.Errorf("message: %q", got)
	}
	if !strings.HasPrefix(files["panics.error"], "panic: test") || files["panics"] != "" {
		t.Errorf("panics: %q", files["panics.error"])
	}
	if len(steps) != len(entries) {
		t.Errorf("told of %q", steps)
	}
}

// Who takes nothing any more, or goes, ends it.
func TestWriteEnds(t *testing.T) {
	entries := []Entry{{Name: "good", Text: text(strings.Repeat("x", 1<<20))}, {Name: "next", Text: text("x")}}
	r, w := io.Pipe()
	r.Close()
	if err := Write(t.Context(), w, Options{Folder: "box"}, entries); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a writer that is closed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Write(ctx, io.Discard, Options{Folder: "box"}, entries); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that went: %v", err)
	}
}

// What the machine tells is told or missed here, and never ends the rest; of the
// processes no arguments.
func TestMachine(t *testing.T) {
	t.Setenv("LVM_SYSTEM_DIR", t.TempDir())
	var out bytes.Buffer
	entries := Machine()
	if err := Write(t.Context(), &out, Options{Folder: "box"}, entries); err != nil {
		t.Fatal(err)
	}
	files := unpack(t, out.Bytes())
	for _, e := range entries {
		if files[e.Name] == "" && files[e.Name+".error"] == "" {
			t.Errorf("nothing of %s", e.Name)
		}
		if strings.Contains(files[e.Name+".error"], "panic") {
			t.Errorf("%s: %s", e.Name, files[e.Name+".error"])
		}
	}
	for name, want := range map[string]string{
		"versions.txt": "sbom: capsule-", "memory.txt": "MemTotal:", "mounts.txt": "# /proc/self/mountinfo", "network.txt": "# 1 lo", "disks.txt": "# /proc/partitions",
		"processes.txt": fmt.Sprintf("\t%d\t%d\t", os.Getpid(), os.Getppid()),
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s: no %q in %.300q; %s", name, want, files[name], files[name+".error"])
		}
	}
	if strings.Contains(files["processes.txt"], "-test.") {
		t.Error("processes are shown with their arguments")
	}
}
