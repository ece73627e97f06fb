package main

import (
	"embed"
	"strings"
)

//go:embed lists/*.txt
var listFiles embed.FS

// list gives the lines of a list, without comments and empty ones.
func list(name string) []string {
	content, err := listFiles.ReadFile("lists/" + name + ".txt")
	if err != nil {
		panic(err) // embedded by the line above
	}
	var lines []string
	for line := range strings.Lines(string(content)) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}
