package manifest

import (
	"strconv"
	"strings"
)

// isBlock tells a text of several lines that can be written as they are: such as YAML
// would not take for anything else, and no editor changes unseen.
func isBlock(s string) bool {
	if !strings.Contains(strings.TrimRight(s, "\n"), "\n") || s[0] == ' ' || s[0] == '\t' || s[0] == '\n' {
		return false
	}
	for line := range strings.SplitSeq(s, "\n") {
		if strings.TrimRight(line, " \t") != line {
			return false
		}
		for _, r := range line {
			if !strconv.IsPrint(r) && r != '\t' {
				return false
			}
		}
	}
	return true
}

// block writes it.
func (e *encoder) block(name, text string, indent int) {
	body := strings.TrimRight(text, "\n")
	mark := "|"
	switch ends := len(text) - len(body); {
	case ends == 0:
		mark = "|-"
	case ends > 1:
		mark = "|+"
		body += strings.Repeat("\n", ends-1)
	}
	e.line(indent, name+": "+mark)
	for line := range strings.SplitSeq(body, "\n") {
		if line == "" {
			e.line(0, "")
		} else {
			e.line(indent+1, line)
		}
	}
}
