package run

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// Feed runs a program that reads stdin, with variables added to its
// environment. An error of stdin is an error of the program.
func Feed(ctx context.Context, stdin io.Reader, env []string, name string, args ...string) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stderr, &stderr
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = outputMax
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	tail := bytes.TrimSpace(stderr.Bytes())
	if len(tail) > stderrTail {
		tail = tail[len(tail)-stderrTail:]
	}
	return fmt.Errorf("%s: %w: %s", name, err, tail)
}
