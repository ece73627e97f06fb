package kmod

import (
	"slices"
	"strings"
)

// bucketLen is how much of a pattern's literal start picks its bucket: "pci",
// "usb", "vir", "acp"… enough to keep a lookup from trying every pattern.
const bucketLen = 3

// An aliasIndex finds the modules whose alias patterns match a modalias.
type aliasIndex struct {
	buckets map[string][]alias
}

type alias struct{ pattern, module string }

// parse adds lines such as "alias pci:v00001AF4d* virtio_pci".
func (x *aliasIndex) parse(b []byte) {
	if x.buckets == nil {
		x.buckets = map[string][]alias{}
	}
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(line, "alias ")
		pattern, module, two := strings.Cut(strings.TrimSuffix(rest, "\n"), " ")
		if !ok || !two {
			continue
		}
		key := bucket(pattern)
		x.buckets[key] = append(x.buckets[key], alias{pattern: pattern, module: nameOf(module)})
	}
}

func bucket(pattern string) string {
	if len(pattern) < bucketLen || strings.ContainsAny(pattern[:bucketLen], "*?[") {
		return ""
	}
	return pattern[:bucketLen]
}

// match gives the modules for a modalias, each once, in the index's order. Names
// of modules are matched with "-" and "_" being the same, as modprobe does.
func (x *aliasIndex) match(modalias string) []string {
	var out []string
	for _, key := range slices.Compact([]string{bucket(modalias), ""}) {
		for _, a := range x.buckets[key] {
			if (glob(a.pattern, modalias) || glob(dashed(a.pattern), dashed(modalias))) && !slices.Contains(out, a.module) {
				out = append(out, a.module)
			}
		}
	}
	return out
}

func dashed(s string) string {
	if strings.Contains(s, ":") { // a device's alias, not a name
		return s
	}
	return strings.ReplaceAll(s, "-", "_")
}

// glob matches the patterns of fnmatch that depmod writes: * ? and [a-z0-9].
// It backtracks only to the last star, so its time is bounded by the product of
// both lengths.
func glob(pattern, s string) bool {
	p, i := 0, 0
	star, mark := -1, 0
	for i < len(s) {
		if p < len(pattern) && pattern[p] == '*' {
			star, mark = p, i
			p++
			continue
		}
		if n, ok := matchOne(pattern[p:], s[i]); ok {
			p, i = p+n, i+1
			continue
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// matchOne says whether the pattern's first element matches c, and its length.
func matchOne(pattern string, c byte) (int, bool) {
	if pattern == "" {
		return 0, false
	}
	switch pattern[0] {
	case '?':
		return 1, true
	case '[':
		end := strings.IndexByte(pattern, ']')
		if end < 0 {
			return 1, c == '['
		}
		return end + 1, inClass(pattern[1:end], c)
	}
	return 1, pattern[0] == c
}

func inClass(class string, c byte) bool {
	for i := 0; i < len(class); i++ {
		if i+2 < len(class) && class[i+1] == '-' {
			if class[i] <= c && c <= class[i+2] {
				return true
			}
			i += 2
			continue
		}
		if class[i] == c {
			return true
		}
	}
	return false
}
