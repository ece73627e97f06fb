//go:build machine

package machine

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"capsule/internal/contexts"
)

// block is a fenced block of a page: yaml becomes a file named by its first
// line, console is run.
var block = regexp.MustCompile("(?ms)^```(console|yaml)\n(.*?)^```$")

// elsewhere are pages whose commands other tests run.
var elsewhere = []string{"updates.md"}

// example is the address that the manual has for a capsule.
const example = "192.168.1.20:50000"

// TestManual runs every command of the pages as their reader would: of all that have
// a manifest in them.
func TestManual(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(repository, "docs/*.md"))
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if name := filepath.Base(page); bytes.Contains(text, []byte("\n```yaml\n# ")) && !slices.Contains(elsewhere, name) {
			ran++
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				readPage(t, name)
			})
		}
	}
	if ran < 5 {
		t.Errorf("only %d pages have an example", ran)
	}
}

// reader does what a page says, in a folder of its own.
type reader struct {
	*testing.T
	dir string
	env []string
}

func readPage(t *testing.T, page string) {
	text, err := os.ReadFile(filepath.Join(repository, "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// A reader knows of no capsule but their own: --all means all that one knows.
	r := &reader{T: t, dir: dir, env: []string{"XDG_CONFIG_HOME=" + filepath.Join(dir, "config")}}
	// The pages are read in the checkout's folder.
	if err := os.Symlink(filepath.Join(repository, "build"), filepath.Join(r.dir, "build")); err != nil {
		t.Fatal(err)
	}
	address := example
	if page != "getting-started.md" {
		address = r.boot("manual-" + strings.TrimSuffix(page, ".md"))
	}
	commands := 0
	for _, m := range block.FindAllSubmatch(text, -1) {
		if string(m[1]) == "yaml" {
			r.write(m[2])
			continue
		}
		// A command that ends with a backslash goes on in the next line.
		lines := strings.ReplaceAll(strings.ReplaceAll(string(m[2]), "\\\n", " "), example, address)
		for line := range strings.Lines(lines) {
			if command, ok := strings.CutPrefix(strings.TrimSpace(line), "$ "); ok {
				r.run(command)
				commands++
			}
		}
	}
	if commands == 0 {
		t.Fatal("no command found")
	}
}

// boot has a capsule with the example's image be the one that is meant, and gives its
// address.
func (r *reader) boot(name string) string {
	r.Helper()
	r.run("capsulectl lab up --name " + name + " --image build/capsule.img --memory 768MiB")
	r.Cleanup(func() { r.run("capsulectl lab down " + name) })
	// Whoever reads it is in the capsule's network: there is no proxy.
	r.env = append(r.env, "CAPSULE_HOST="+name, "NO_PROXY=*")
	if err := os.Link(filepath.Join(repository, "build/example/web.tar"), filepath.Join(r.dir, "web.tar")); err != nil {
		r.Fatal(err)
	}
	r.run("capsulectl image push web.tar")
	return r.addressOf(name)
}

// addressOf is where a capsule's API is reached.
func (r *reader) addressOf(name string) string {
	r.Helper()
	store, err := contexts.Open(filepath.Join(r.dir, "config/capsule"))
	if err != nil {
		r.Fatal(err)
	}
	c, err := store.Get(name)
	if err != nil {
		r.Fatal(err)
	}
	return c.Host
}

// write makes a file of a block, which is named by its first line.
func (r *reader) write(text []byte) {
	r.Helper()
	first, _, _ := bytes.Cut(text, []byte("\n"))
	name, ok := strings.CutPrefix(string(first), "# ")
	if !ok {
		r.Fatalf("yaml without a name on its first line: %s", first)
	}
	if err := os.WriteFile(filepath.Join(r.dir, name), text, 0o644); err != nil {
		r.Fatal(err)
	}
}

// untilInterrupted ends a command that would go on for ever.
const untilInterrupted = "# until Ctrl-C"

func (r *reader) run(command string) {
	r.Helper()
	cmd := exec.Command("sh", "-c", command)
	cmd.Dir, cmd.Env = r.dir, append(os.Environ(), r.env...)
	if strings.HasPrefix(command, "make ") {
		cmd.Dir = repository
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if strings.HasSuffix(command, untilInterrupted) {
		cmd.Args[2] = "exec " + command
		cmd.Stdout = &interrupter{Writer: &out, cmd: cmd}
		cmd.Stderr = cmd.Stdout
		limit := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		defer limit.Stop()
	}
	err := cmd.Run()
	r.Logf("$ %s\n%s", command, &out)
	if err != nil {
		r.Fatalf("%s: %v", command, err)
	}
}

// interrupter presses Ctrl-C once a command has printed something.
type interrupter struct {
	io.Writer
	cmd  *exec.Cmd
	once sync.Once
}

func (i *interrupter) Write(p []byte) (int, error) {
	i.once.Do(func() { _ = i.cmd.Process.Signal(os.Interrupt) }) // it may have ended by itself
	return i.Writer.Write(p)
}
