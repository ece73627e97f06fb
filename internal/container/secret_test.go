package container

import (
	"os"
	"path/filepath"
	"testing"

	"capsule/internal/runc"
)

// runcName is how this program is called when it is to take the place of runc.
const runcName = "capsule-runc"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == runcName {
		runc.Main()
	}
	os.Exit(m.Run())
}

// runcProgram is the machine's capsule-runc, made of what is tested.
func runcProgram(t *testing.T) string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), runcName)
	if err := os.Symlink(program, path); err != nil {
		t.Fatal(err)
	}
	return path
}
