package main

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// Each command that has names for its arguments is one.
func TestCompletionsAreOfCommands(t *testing.T) {
	root := newRootCommand(&app{ui: &ui{}})
	var paths []string
	for _, cmd := range all(root) {
		paths = append(paths, cmd.CommandPath())
	}
	for path := range completions() {
		if !slices.Contains(paths, "capsulectl "+path) {
			t.Errorf("%q is no command", path)
		}
	}
}

// A list that hangs keeps nobody from the prompt.
func TestCompletionEnds(t *testing.T) {
	hangs := func(ctx context.Context, _ *app) []string {
		select {} // a keychain that waits for a person heeds no context
	}
	cmd := &cobra.Command{}
	cmd.SetContext(t.Context())
	begun := time.Now()
	found, _ := complete(&app{ui: &ui{}}, func(int) lister { return hangs })(cmd, nil, "")
	if took := time.Since(begun); len(found) > 0 || took > completeMax+2*time.Second {
		t.Errorf("%q after %v", found, took)
	}
}
