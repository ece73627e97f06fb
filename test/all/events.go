package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// event is a line of `go test -json` (cmd/internal/test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64 // seconds
	Output  string
}

// failureLines of each failed test are said again at the end.
const failureLines = 20

var coverageLine = regexp.MustCompile(`coverage: ([0-9.]+)% of statements`)

// read follows one run, printing each package's result and the output of what failed.
func (r *report) read(in io.Reader) {
	output := map[string]*strings.Builder{}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Print(line)
			} else {
				r.take(e, output)
			}
		}
		if err != nil {
			return
		}
	}
}

func (r *report) take(e event, output map[string]*strings.Builder) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if m := coverageLine.FindStringSubmatch(e.Output); m != nil {
			r.cover(e.Package, m[1])
		}
		if output[key] == nil {
			output[key] = &strings.Builder{}
		}
		output[key].WriteString(e.Output)
	case "pass", "fail", "skip", "build-fail":
		r.end(e, output[key])
		delete(output, key)
	}
}

// lastLines are the last n of a text.
func lastLines(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

func (r *report) cover(pkg, percent string) {
	if c, err := strconv.ParseFloat(percent, 64); err == nil {
		r.coverage[pkg] = max(r.coverage[pkg], c)
	}
}

func (r *report) end(e event, output *strings.Builder) {
	text := ""
	if output != nil {
		text = output.String()
	}
	if e.Action == "fail" || e.Action == "build-fail" {
		fmt.Print(text)
		r.failures = append(r.failures, strings.TrimSpace(e.Package+" "+e.Test)+"\n"+lastLines(text, failureLines))
	}
	if e.Test == "" {
		fmt.Printf("%-5s %s %.1f s\n", e.Action, e.Package, e.Elapsed)
		return
	}
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
	case "skip":
		r.skipped++
		r.skippedIn[e.Package] = true
	}
	if !strings.Contains(e.Test, "/") {
		r.tests = append(r.tests, timed{e.Package + " " + e.Test, time.Duration(e.Elapsed * float64(time.Second))})
	}
}
