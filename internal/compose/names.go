package compose

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"capsule/api/manifest"
)

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// slug makes a name of ours of any text; never "".
func slug(text string) string {
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(text), "-"), "-")
	if name == "" {
		name = "unnamed"
	}
	if strings.Trim(name, "0123456789-") == "" {
		name = "n" + name
	}
	name = cut(name, manifest.NameMax)
	if manifest.CheckName(name) != nil { // one of the capsule's own
		name = cut(name, manifest.NameMax-len("-app")) + "-app"
	}
	return name
}

func cut(name string, most int) string { return strings.Trim(name[:min(len(name), most)], "-") }

// unused gives a name that is not taken yet, and takes it.
func unused(taken map[string]bool, kind, text string) string {
	name := slug(text)
	for i := 2; taken[kind+" "+name]; i++ {
		end := "-" + strconv.Itoa(i)
		name = cut(slug(text), manifest.NameMax-len(end)) + end
	}
	taken[kind+" "+name] = true
	return name
}

// nameServices gives each a name, those first whose name is a good one already.
func (c *converter) nameServices() {
	names := c.serviceNames()
	slices.SortStableFunc(names, func(a, b string) int { return score(slug(a) != a) - score(slug(b) != b) })
	for _, name := range names {
		c.names[name] = unused(c.taken, "workload", c.src.Prefix+name)
	}
}

func score(bad bool) int {
	if bad {
		return 1
	}
	return 0
}

// projectName is a name of a volume or secret within the project.
func (c *converter) projectName(kind, text string) string {
	if p := c.model.project.Name; p != "" {
		text = p + "-" + text
	}
	return unused(c.taken, kind, text)
}

// renamed tells of services that have another name here, and where the old one is used.
func (c *converter) renamed() {
	for _, name := range c.serviceNames() {
		called := c.names[name]
		for _, old := range c.oldNames(name) {
			if c.src.Prefix == "" || old.name != name { // else it was asked for
				c.lose(old.path, "the workload is called %q here: nothing answers to %q", called, old.name)
			}
			c.mentions(old.name, called)
		}
	}
}

type oldName struct{ path, name string }

// oldNames are those by which others reach a service under Docker, and not here.
func (c *converter) oldNames(name string) []oldName {
	s := c.model.project.Services[name]
	path := join("services", name)
	var list []oldName
	add := func(at, old string) {
		known := old == "" || strings.EqualFold(old, c.names[name]) || slices.ContainsFunc(list, func(o oldName) bool { return o.name == old })
		if !known {
			list = append(list, oldName{at, old})
		}
	}
	add(path, name)
	add(join(path, "container_name"), s.ContainerName)
	add(join(path, "hostname"), s.Hostname)
	for _, network := range sortedKeys(s.Networks) {
		if n := s.Networks[network]; n != nil {
			for _, alias := range n.Aliases {
				add(join(path, "networks", network, "aliases"), alias)
			}
		}
	}
	return list
}

// mentions tells where a name that is no longer one is used in what a program is given.
// It is not changed there: it may mean something else.
func (c *converter) mentions(old, called string) {
	word := regexp.MustCompile(`(^|[^A-Za-z0-9_.-])` + regexp.QuoteMeta(old) + `($|[^A-Za-z0-9_.-])`)
	tell := func(path, text string) {
		if word.MatchString(text) {
			c.lose(path, "names %q, which is called %q here; change it in the manifest", old, called)
		}
	}
	for _, name := range c.serviceNames() {
		s, path := c.model.project.Services[name], join("services", name)
		for _, variable := range sortedKeys(c.model.env[name]) {
			tell(join(path, "environment", variable), c.model.env[name][variable])
		}
		tell(join(path, "command"), strings.Join(s.Command, " "))
		tell(join(path, "entrypoint"), strings.Join(s.Entrypoint, " "))
		if s.HealthCheck != nil {
			tell(join(path, "healthcheck", "test"), strings.Join(s.HealthCheck.Test, " "))
		}
	}
}

// sortedKeys of a map.
func sortedKeys[M ~map[string]V, V any](m M) []string { return slices.Sorted(maps.Keys(m)) }

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}
