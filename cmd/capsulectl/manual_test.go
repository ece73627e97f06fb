package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Commands of the manual: whole lines of examples, and what stands in sentences.
var (
	exampleLine = regexp.MustCompile(`(?m)^\$ (capsulectl .*)$`)
	inSentence  = regexp.MustCompile("`(capsulectl [^`]*)`")
)

// Each command that the manual names is one, with flags that it has. Whether they do
// what is said, test/machine tries.
func TestManualCommands(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 8 {
		t.Fatal(pages, err)
	}
	seen := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(page) == "cli.md" { // it is made of the commands
			continue
		}
		text = bytes.ReplaceAll(text, []byte("\\\n"), []byte(" "))
		for _, m := range exampleLine.FindAllSubmatch(text, -1) {
			seen++
			if err := parses(string(m[1]), true); err != nil {
				t.Errorf("%s: %s: %v", page, m[1], err)
			}
		}
		for _, m := range inSentence.FindAllSubmatch(text, -1) {
			seen++
			if err := parses(string(m[1]), false); err != nil {
				t.Errorf("%s: %s: %v", page, m[1], err)
			}
		}
	}
	if seen < 100 {
		t.Errorf("only %d commands found", seen)
	}
}

func TestManualFaults(t *testing.T) {
	for line, whole := range map[string]bool{
		"capsulectl evnts": false, "capsulectl workload lst": false, "capsulectl workload": true, "capsulectl events --sinse 1h": false,
		"capsulectl workload get": true, "capsulectl access revoke": true,
	} {
		if parses(line, whole) == nil {
			t.Errorf("%s: taken for a command", line)
		}
	}
	for line, whole := range map[string]bool{
		"capsulectl capsule logs [SERVICE]": false, "capsulectl workload get": false, "capsulectl workload exec web -- /web -get / | wc": true,
		"capsulectl events --since '#2' --follow   # until Ctrl-C": true,
	} {
		if err := parses(line, whole); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// parses tells what is wrong with a command line; whole ones have all their arguments.
func parses(line string, whole bool) error {
	cmd, rest, err := newRootCommand(&app{ui: &ui{}}).Find(words(line)[1:])
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if cmd.HasSubCommands() && (whole || cmd.Flags().NArg() > 0) {
		return fmt.Errorf("%q is only a group of commands", cmd.CommandPath())
	}
	if !whole {
		return nil
	}
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		return err
	}
	return cmd.ValidateRequiredFlags()
}

// words are those of a line up to where the shell has a part of it; what is optional
// in a sentence, "[SERVICE]", is left out.
func words(line string) (list []string) {
	for _, w := range regexp.MustCompile(`'[^']*'|"[^"]*"|[^\s'"]+`).FindAllString(line, -1) {
		switch {
		case strings.ContainsAny(w[:1], "|>#&;"):
			return list
		case w[0] == '[' || strings.HasSuffix(w, "]"):
		default:
			list = append(list, strings.Trim(w, `'"`))
		}
	}
	return list
}
