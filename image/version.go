package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"capsule/internal/run"
)

// quick bounds programs that only look something up.
const quick = 2 * time.Minute

// sourceVersion names the source tree: the last tag and what came after it, and
// the time of the commit, which SOURCE_DATE_EPOCH overrides.
func sourceVersion(ctx context.Context, repo string) (version string, unix int64, err error) {
	git := func(args ...string) (string, error) {
		out, err := run.Output(ctx, quick, "git", append([]string{"-c", "safe.directory=*", "-C", repo}, args...)...)
		return strings.TrimSpace(string(out)), err
	}
	// The Makefile names capsulectl in the same way.
	if version, err = git("describe", "--tags", "--always", "--dirty"); err != nil {
		return "", 0, err
	}
	stamp := os.Getenv("SOURCE_DATE_EPOCH")
	if stamp == "" {
		if stamp, err = git("log", "-1", "--format=%ct"); err != nil {
			return "", 0, err
		}
	}
	if unix, err = strconv.ParseInt(stamp, 10, 64); err != nil {
		return "", 0, fmt.Errorf("read build time %q: %w", stamp, err)
	}
	return version, unix, nil
}
