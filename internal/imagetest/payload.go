package imagetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// payloadProgram is built once per test process.
var payloadProgram = sync.OnceValues(func() ([]byte, error) {
	if path := prebuilt("CAPSULE_TEST_PAYLOAD", "payload"); path != "" {
		return os.ReadFile(path)
	}
	dir, err := os.MkdirTemp("", "payload")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	out := filepath.Join(dir, "payload")
	return goBuild(out, "-trimpath", "-ldflags=-s -w", "capsule/internal/imagetest/payload")
})

// Payload returns the static program of folder payload. A test binary that is
// moved to a machine without Go finds it beside itself, or by the variable
// CAPSULE_TEST_PAYLOAD.
func Payload(t testing.TB) []byte {
	t.Helper()
	program, err := payloadProgram()
	if err != nil {
		t.Fatalf("imagetest: build the payload: %v", err)
	}
	return program
}

// PayloadLayer is a layer with the program at /payload, the folders that
// programs expect and the users "root" and "app" (1000:1000).
func PayloadLayer(t testing.TB) *Layer {
	t.Helper()
	return NewLayer().
		Dir("etc", 0o755).Dir("dev", 0o755).Dir("proc", 0o555).Dir("sys", 0o555).
		Dir("tmp", 0o1777).Dir("root", 0o700).
		File("etc/passwd", 0o644, "root:x:0:0:root:/root:/payload\napp:x:1000:1000:app:/:/payload\n").
		File("etc/group", 0o644, "root:x:0:\napp:x:1000:\nextra:x:2000:app\n").
		File("payload", 0o755, string(Payload(t)))
}

// PayloadImage is an image that runs the payload with the arguments; further
// layers go on top.
func PayloadImage(t testing.TB, args []string, layers ...*Layer) Image {
	t.Helper()
	return Image{
		Layers: append([]*Layer{PayloadLayer(t)}, layers...),
		Config: ocispec.ImageConfig{Entrypoint: []string{"/payload"}, Cmd: args},
	}
}

// prebuilt finds a program that was built before: by a variable, or beside the
// test binary.
func prebuilt(variable, name string) string {
	if path := os.Getenv(variable); path != "" {
		return path
	}
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// goBuild builds a static program and returns its bytes.
func goBuild(out string, args ...string) ([]byte, error) {
	cmd := exec.Command("go", append([]string{"build", "-o", out}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	if output, err := cmd.CombinedOutput(); err != nil {
		return nil, &buildError{err, string(output)}
	}
	return os.ReadFile(out)
}

type buildError struct {
	err    error
	output string
}

func (e *buildError) Error() string { return e.err.Error() + ": " + e.output }
