//go:build machine

package machine

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// block is a fenced block of a page: yaml becomes a file named by its first
// line, console is run.
var block = regexp.MustCompile("(?ms)^```(console|yaml)\n(.*?)^```$")

// TestManual runs every command of the pages as their reader would.
func TestManual(t *testing.T) {
	for _, page := range []string{"getting-started.md", "workloads.md", "networking.md", "volumes.md"} {
		t.Run(page, func(t *testing.T) { runPage(t, page) })
	}
}

func runPage(t *testing.T, page string) {
	text, err := os.ReadFile(filepath.Join(repository, "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// The pages are read in the checkout's folder.
	if err := os.Symlink(filepath.Join(repository, "build"), filepath.Join(dir, "build")); err != nil {
		t.Fatal(err)
	}
	if page != "getting-started.md" {
		if err := up("manual", "--memory", "768MiB"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { runLine(t, dir, "capsulectl lab down manual") })
		t.Setenv("CAPSULE_HOST", "manual")
		if err := os.Link(filepath.Join(repository, "build/example/web.tar"), filepath.Join(dir, "web.tar")); err != nil {
			t.Fatal(err)
		}
		runLine(t, dir, "capsulectl image push web.tar")
	}
	commands := 0
	for _, m := range block.FindAllSubmatch(text, -1) {
		if string(m[1]) == "yaml" {
			writeNamed(t, dir, m[2])
			continue
		}
		for line := range strings.Lines(string(m[2])) {
			if command, ok := strings.CutPrefix(strings.TrimSpace(line), "$ "); ok {
				runLine(t, dir, command)
				commands++
			}
		}
	}
	if commands == 0 {
		t.Fatal("no command found")
	}
}

func writeNamed(t *testing.T, dir string, text []byte) {
	t.Helper()
	first, _, _ := bytes.Cut(text, []byte("\n"))
	name, ok := strings.CutPrefix(string(first), "# ")
	if !ok {
		t.Fatalf("yaml without a name on its first line: %s", first)
	}
	if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
		t.Fatal(err)
	}
}

func runLine(t *testing.T, dir, command string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", command)
	cmd.Dir = dir
	if strings.HasPrefix(command, "make ") {
		cmd.Dir = repository
	}
	out, err := cmd.CombinedOutput()
	t.Logf("$ %s\n%s", command, out)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
}
