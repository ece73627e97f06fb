package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var manDate = time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)

func pagesOfMan() map[string]string { return manPages(newRootCommand(&app{ui: &ui{}}), manDate) }

// Each command that help shows has a page, with what help says of it.
func TestManPages(t *testing.T) {
	pages := pagesOfMan()
	for _, cmd := range all(newRootCommand(&app{ui: &ui{}})) {
		page, ok := pages[manName(cmd)+".1"]
		if want := cmd.IsAvailableCommand() || !cmd.HasParent(); ok != want {
			t.Errorf("%s: page %v, want %v", cmd.CommandPath(), ok, want)
		}
		if !ok {
			continue
		}
		for _, want := range []string{".SH NAME\n", ".SH SYNOPSIS\n", ".SH DESCRIPTION\n"} {
			if !strings.Contains(page, want) {
				t.Errorf("%s has no %s", cmd.CommandPath(), want)
			}
		}
		if !strings.HasPrefix(page, ".TH \"CAPSULECTL") || !strings.Contains(strings.SplitN(page, "\n", 2)[0], "2026-11-30") {
			t.Errorf("%s begins %.60q", cmd.CommandPath(), page)
		}
		for line := range strings.Lines(page) {
			if strings.HasPrefix(line, ".") && !requests.MatchString(line) || strings.HasPrefix(line, "'") {
				t.Errorf("%s: %q is taken for a request", cmd.CommandPath(), line)
			}
		}
	}
}

// requests that pages are made of.
var requests = regexp.MustCompile(`^\.(TH|SH|B|BR|TP|PP|nf|fi)[ \n]`)

func TestManPageSaysAll(t *testing.T) {
	page := pagesOfMan()["capsulectl-apply.1"]
	for _, want := range []string{
		"capsulectl\\-apply \\- create or change workloads", "*.yaml and *.yml", ".B \\-\\-dry\\-run\n", ".B \\-f, \\-\\-file",
		".SH OPTIONS OF ALL COMMANDS\n", ".SH EXIT STATUS\n0 done, 1 failed", ".SH EXAMPLES\n", ".SH SEE ALSO\n.BR capsulectl (1)\n",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
	if root := pagesOfMan()["capsulectl.1"]; !strings.Contains(root, ".BR capsulectl\\-apply (1)\n") || !strings.Contains(root, ".BR capsulectl\\-workload (1)\n") {
		t.Errorf("the root's page lists no commands:\n%s", root)
	}
}

func TestRoff(t *testing.T) {
	for text, want := range map[string]string{
		"a-b": `a\-b`, ".x\n.y": "\\&.x\n\\&.y", `C:\x`: `C:\ex`, "'q\n'r": "\\&'q\n\\&'r",
	} {
		if got := roff(text); got != want {
			t.Errorf("roff(%q) = %q, want %q", text, got, want)
		}
	}
}

// man has nothing to complain of, where it is.
func TestManLints(t *testing.T) {
	lint, args := "", []string(nil)
	for program, with := range map[string][]string{"mandoc": {"-T", "lint", "-W", "error"}, "groff": {"-Kutf8", "-man", "-ww", "-z"}} {
		if path, err := exec.LookPath(program); err == nil {
			lint, args = path, with
		}
	}
	if lint == "" {
		t.Skip("neither mandoc nor groff is here")
	}
	dir := t.TempDir()
	for name, text := range pagesOfMan() {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(lint, append(args, file)...).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
