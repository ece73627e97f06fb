// Package campaign is what the long tests share: the variables that they are told by,
// and the pages that tell of them, in which others write, too.
package campaign

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// Number is the value of a variable of the environment; otherwise when it isn't set.
func Number(t testing.TB, variable string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// Checkout is the version of the code in a folder, for what is told of its runs.
func Checkout(dir string) string {
	cmd := exec.Command("git", "describe", "--tags", "--always")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
