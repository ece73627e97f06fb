package lvm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A table that can't be had hides none of the others.
func TestReport(t *testing.T) {
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("the lvm of this test is a shell script, and there is no shell")
	}
	dir := t.TempDir()
	program := "#!/bin/sh\n[ $1 = vgs ] && { echo 'no group' >&2; exit 5; }\necho table of $1\n"
	if err := os.WriteFile(filepath.Join(dir, "lvm"), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	text, err := Report(t.Context())
	if !strings.Contains(string(text), "table of pvs") || !strings.Contains(string(text), "table of lvs") {
		t.Errorf("got %q", text)
	}
	if err == nil || !strings.Contains(err.Error(), "no group") {
		t.Errorf("got %v", err)
	}
}
