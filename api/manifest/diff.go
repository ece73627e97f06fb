package manifest

import (
	"strings"

	capsulev1 "capsule/api/capsule/v1"
)

// diffCells bounds the work of one comparison; beyond it everything differs.
const diffCells = 4 << 20

// Diff compares the manifests of two objects line by line: "-" and "+" stand in
// front of what differs, a space in front of the field that it belongs to. It
// is empty for equal ones. Either may be nil. Sizes stand in bytes, too.
func Diff(old, new *capsulev1.Object) string {
	a, b := manifestLines(old), manifestLines(new)
	var out strings.Builder
	var parents []string
	for _, l := range compare(a, b) {
		if l.mark == ' ' {
			parents = append(trimDeeper(parents, l.text), l.text)
			continue
		}
		for _, p := range trimDeeper(parents, l.text) {
			out.WriteString(" " + p + "\n")
		}
		parents = nil
		out.WriteString(string(l.mark) + l.text + "\n")
	}
	return out.String()
}

// trimDeeper leaves the lines that text stands under.
func trimDeeper(parents []string, text string) []string {
	for len(parents) > 0 && depth(parents[len(parents)-1]) >= depth(text) {
		parents = parents[:len(parents)-1]
	}
	return parents
}

func depth(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }

func manifestLines(o *capsulev1.Object) []string {
	if o == nil {
		return nil
	}
	e := encoder{bytes: true}
	if err := e.object(o); err != nil {
		return nil
	}
	return strings.Split(strings.TrimSuffix(e.out.String(), "\n"), "\n")
}

type diffLine struct {
	mark byte
	text string
}

// compare is the longest common subsequence of two lists of lines.
func compare(a, b []string) []diffLine {
	var out []diffLine
	if (len(a)+1)*(len(b)+1) > diffCells {
		for _, s := range a {
			out = append(out, diffLine{'-', s})
		}
		for _, s := range b {
			out = append(out, diffLine{'+', s})
		}
		return out
	}
	common := make([][]int32, len(a)+1)
	for i := range common {
		common[i] = make([]int32, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			out = append(out, diffLine{' ', a[i]})
			i, j = i+1, j+1
		case i < len(a) && (j == len(b) || common[i+1][j] >= common[i][j+1]):
			out = append(out, diffLine{'-', a[i]})
			i++
		default:
			out = append(out, diffLine{'+', b[j]})
			j++
		}
	}
	return out
}
