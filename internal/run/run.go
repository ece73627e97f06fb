// Package run is the only place that executes other programs.
package run

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// stderrTail is how many bytes of a failed program's complaint stand in the error.
const stderrTail = 1024

// outputMax bounds the wait for the rest of what a program printed, once it has
// ended: a child that it left behind may hold the pipe.
const outputMax = 10 * time.Second

// Output runs a program and returns what it printed. It fails when the program
// does, naming it with the end of its stderr, and when it takes longer than limit.
func Output(ctx context.Context, limit time.Duration, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = outputMax
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() == context.DeadlineExceeded {
		err = fmt.Errorf("no end within %v", limit)
	}
	tail := bytes.TrimSpace(stderr.Bytes())
	if len(tail) > stderrTail {
		tail = tail[len(tail)-stderrTail:]
	}
	if len(tail) > 0 {
		return stdout.Bytes(), fmt.Errorf("%s: %w: %s", strings.Join(append([]string{name}, args...), " "), err, tail)
	}
	return stdout.Bytes(), fmt.Errorf("%s: %w", strings.Join(append([]string{name}, args...), " "), err)
}
