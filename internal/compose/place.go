package compose

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v4"
)

// Bounds of looking through the text: far more than any file of MaxBytes that people
// write, and a stop for one whose aliases repeat each other.
const (
	placesMax = 100_000
	depthMax  = 64
)

// places are the lines of a file's fields.
type places struct {
	visits  int // of nodes: an alias may lead back to what it stands in
	lines   map[string]int
	scalars []scalar
}

type scalar struct {
	path, text string
	line       int
}

// newPlaces reads the first document of a text; one that is no YAML has no places.
func newPlaces(data []byte) *places {
	p := &places{lines: map[string]int{}}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return p
	}
	var root yaml.Node
	if loader.Load(&root) == nil {
		p.add("", &root, 0)
	}
	return p
}

// circle finds an alias that leads back to what it stands in, and gives its line, or 0.
// The library goes round in one that is merged in until its stack ends.
func circle(data []byte) int {
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return 0
	}
	for {
		var root yaml.Node
		if loader.Load(&root) != nil {
			return 0
		}
		if line := circleIn(&root, map[*yaml.Node]bool{}); line != 0 {
			return line
		}
	}
}

// circleIn keeps which nodes it has seen, and whether it is within them.
func circleIn(n *yaml.Node, within map[*yaml.Node]bool) int {
	if inside, seen := within[n]; seen {
		if inside {
			return max(n.Line, 1)
		}
		return 0
	}
	within[n] = true
	children := n.Content
	if n.Kind == yaml.AliasNode {
		children = []*yaml.Node{n.Alias}
	}
	for _, child := range children {
		if line := circleIn(child, within); line != 0 {
			return line
		}
	}
	within[n] = false
	return 0
}

// join makes the path of a field.
func join(parts ...string) string { return strings.Join(parts, ".") }

func (p *places) add(path string, n *yaml.Node, depth int) {
	if p.visits++; depth > depthMax || p.visits > placesMax {
		return
	}
	switch n.Kind {
	case yaml.DocumentNode:
		for _, child := range n.Content {
			p.add(path, child, depth+1)
		}
	case yaml.AliasNode:
		p.add(path, n.Alias, depth+1)
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			p.entry(path, n.Content[i], n.Content[i+1], depth)
		}
	case yaml.SequenceNode:
		for i, child := range n.Content {
			at := path + "[" + strconv.Itoa(i) + "]"
			p.note(at, child.Line)
			if name, _, _ := strings.Cut(child.Value, "="); child.Kind == yaml.ScalarNode {
				p.note(join(path, name), child.Line)
			}
			p.add(at, child, depth+1)
		}
	case yaml.ScalarNode:
		p.scalars = append(p.scalars, scalar{path, n.Value, n.Line})
	}
}

// entry adds one field of a mapping; those that are merged in stand where they are written.
func (p *places) entry(path string, key, value *yaml.Node, depth int) {
	if key.Value == "<<" {
		merged := []*yaml.Node{value}
		if value.Kind == yaml.SequenceNode {
			merged = value.Content
		}
		for _, m := range merged {
			p.add(path, m, depth+1)
		}
		return
	}
	at := key.Value
	if path != "" {
		at = join(path, key.Value)
	}
	p.note(at, key.Line)
	p.add(at, value, depth+1)
}

// note keeps the first place of a path.
func (p *places) note(path string, line int) {
	if p.lines[path] == 0 {
		p.lines[path] = line
	}
}

// line of a field, or of the nearest thing around it that the file has.
func (p *places) line(path string) int {
	for path != "" {
		if line := p.lines[path]; line != 0 {
			return line
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 0
}

// items counts those of a list as it is written.
func (p *places) items(path string) int {
	n := 0
	for p.lines[path+"["+strconv.Itoa(n)+"]"] != 0 {
		n++
	}
	return n
}

// variable finds where ${NAME} stands without a default.
func (p *places) variable(name string) (path string, line int) {
	for _, s := range p.scalars {
		for _, m := range plainVariable.FindAllStringSubmatch(s.text, -1) {
			if m[1]+m[2] == name {
				return s.path, s.line
			}
		}
	}
	return "", 0
}

var portRange = regexp.MustCompile(`([0-9]{1,5})-([0-9]{1,5})`)

// portsInRanges counts the ports that reading the file spreads out.
func (p *places) portsInRanges() int {
	n := 0
	for _, s := range p.scalars {
		if !strings.Contains(s.path, ".ports[") {
			continue
		}
		for _, m := range portRange.FindAllStringSubmatch(s.text, -1) {
			begin, _ := strconv.Atoi(m[1]) //nolint:errcheck // five digits
			end, _ := strconv.Atoi(m[2])   //nolint:errcheck // five digits
			n += max(0, end-begin)
		}
	}
	return n
}
