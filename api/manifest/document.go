package manifest

import (
	"fmt"
	"slices"
	"strings"

	yaml "go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/reflect/protoreflect"

	capsulev1 "capsule/api/capsule/v1"
)

// document is one YAML document while it is read.
type document struct {
	file   string
	errs   *Errors
	object *capsulev1.Object
	// at holds where each field was written, by its path ("ports[0].hostPort");
	// "" is the document.
	at map[string]*yaml.Node
	// bad holds the paths that could not be read: no rule is checked on them,
	// so that one fault is one error.
	bad map[string]bool
}

func (d *document) fail(n *yaml.Node, format string, args ...any) {
	d.errs.add(Error{File: d.file, Line: max(n.Line, 1), Column: max(n.Column, 1), Message: fmt.Sprintf(format, args...)})
}

// place finds where a path was written, or the nearest thing around it.
func (d *document) place(path string) *yaml.Node {
	for {
		if n, ok := d.at[path]; ok {
			return n
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
}

// isBad tells whether a path or what it lies in could not be read.
func (d *document) isBad(path string) bool {
	for path != "" {
		if d.bad[path] {
			return true
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return false
}

// badBelow tells whether anything under a path could not be read.
func (d *document) badBelow(path string) bool {
	for bad := range d.bad {
		if strings.HasPrefix(bad, path+".") {
			return true
		}
	}
	return false
}

// decode reads one document into d.object, then checks it by the rules that the
// server has too.
func (d *document) decode(body *yaml.Node) {
	d.object = &capsulev1.Object{Meta: &capsulev1.Meta{}}
	if !d.plain(body) {
		return
	}
	if body.Kind != yaml.MappingNode {
		d.fail(body, "want fields such as \"kind: Container\", found %s", describe(body))
		return
	}
	spec := d.newSpec(body)
	fields := spec.Descriptor().Fields()
	d.eachKey(body, func(key, value *yaml.Node) {
		switch key.Value {
		case "kind":
			d.at["kind"] = value
			d.object.Meta.Kind = d.text(value, "kind")
		case "name":
			d.at["name"] = value
			d.object.Meta.Name = d.text(value, "name")
		default:
			f := fields.ByJSONName(key.Value)
			if f != nil && isNetwork(f) && value.Kind == yaml.MappingNode && d.plain(value) {
				d.network(spec, value)
				return
			}
			if f != nil && !isWithinNetwork(f) {
				d.field(spec, f, value, key.Value)
				return
			}
			d.bad[d.unknownField(key, fields, []string{"kind", "name"})] = true
		}
	})
	if d.object.Meta.Kind == KindCapsule && d.at["name"] == nil {
		d.object.Meta.Name = CapsuleName
	}
	for _, p := range problems(d.object) {
		if !d.isBad(p.path) && !(p.lacks && d.badBelow(p.path)) {
			d.fail(d.place(p.path), "%s", p.message)
		}
	}
}

// newSpec gives the object the spec of its kind, which is looked for first: it
// may stand anywhere among the fields. A misspelt kind counts as the one meant.
func (d *document) newSpec(body *yaml.Node) protoreflect.Message {
	for i := 0; i+1 < len(body.Content); i += 2 {
		if body.Content[i].Value != "kind" {
			continue
		}
		switch nearest(body.Content[i+1].Value, kinds) {
		case KindVolume:
			spec := &capsulev1.VolumeSpec{}
			d.object.Kind = &capsulev1.Object_Volume{Volume: &capsulev1.Volume{Spec: spec}}
			return spec.ProtoReflect()
		case KindSecret:
			spec := &capsulev1.SecretSpec{}
			d.object.Kind = &capsulev1.Object_Secret{Secret: &capsulev1.Secret{Spec: spec}}
			return spec.ProtoReflect()
		case KindCapsule:
			spec := &capsulev1.CapsuleSpec{}
			d.object.Kind = &capsulev1.Object_Capsule{Capsule: &capsulev1.Capsule{Spec: spec}}
			return spec.ProtoReflect()
		}
	}
	spec := &capsulev1.WorkloadSpec{}
	d.object.Kind = &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Spec: spec}}
	return spec.ProtoReflect()
}

// eachKey walks a mapping, refusing keys that are no plain words or come twice.
func (d *document) eachKey(n *yaml.Node, each func(key, value *yaml.Node)) {
	if len(n.Content) > 2*entriesMax {
		d.fail(n, "more than %d entries", entriesMax)
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !d.plain(key) {
			continue
		}
		if key.Kind != yaml.ScalarNode {
			d.fail(key, "a field's name must be a word, found %s", describe(key))
			continue
		}
		if key.Value == "<<" && key.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) == 0 {
			d.fail(key, "merge keys are not supported: write the fields out")
			continue
		}
		if line, ok := seen[key.Value]; ok {
			d.fail(key, "field %q is given twice, first in line %d", key.Value, line)
			continue
		}
		seen[key.Value] = key.Line
		each(key, value)
	}
}

// unknownField reports a key that no field has and returns the name meant, as
// far as that can be told.
func (d *document) unknownField(key *yaml.Node, fields protoreflect.FieldDescriptors, more []string) string {
	names := slices.Clone(more)
	for i := range fields.Len() {
		if f := fields.Get(i); !isWithinNetwork(f) {
			names = append(names, f.JSONName())
		} else if key.Value == fieldLAN {
			d.fail(key, "unknown field %q; it belongs under %q", key.Value, fieldNetwork)
			return ""
		}
	}
	if meant, ok := foreignNames[strings.ToLower(key.Value)]; ok && slices.Contains(names, meant) {
		d.fail(key, "unknown field %q; it is called %q here", key.Value, meant)
		return meant
	}
	if meant := nearest(key.Value, names); meant != "" {
		d.fail(key, "unknown field %q; did you mean %q?", key.Value, meant)
		return meant
	}
	switch meant, parent := nested(key.Value, fields); meant {
	case "":
	case key.Value:
		d.fail(key, "unknown field %q; it belongs under %q", key.Value, parent)
		return ""
	default:
		d.fail(key, "unknown field %q; did you mean %q under %q?", key.Value, meant, parent)
		return ""
	}
	d.fail(key, "unknown field %q; known are %s", key.Value, strings.Join(names, ", "))
	return ""
}

// nested looks for a name in the fields of fields, where it was forgotten to
// stand.
func nested(word string, fields protoreflect.FieldDescriptors) (meant, parent string) {
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.Message() == nil || f.IsMap() || f.Message().FullName() == durationName {
			continue
		}
		var names []string
		for j := range f.Message().Fields().Len() {
			names = append(names, f.Message().Fields().Get(j).JSONName())
		}
		meant := nearest(word, names)
		if alias, ok := foreignNames[strings.ToLower(word)]; ok && slices.Contains(names, alias) {
			meant = alias
		}
		if meant != "" {
			return meant, f.JSONName()
		}
	}
	return "", ""
}

// plain refuses what YAML offers beyond values: it would let one line stand for
// others, or change a value's type unseen.
func (d *document) plain(n *yaml.Node) bool {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.fail(n, "anchors and aliases are not supported: write the value out")
	case n.Style&yaml.TaggedStyle != 0:
		d.fail(n, "tags such as %q are not supported: quote the value to make it text", n.Tag)
	default:
		return true
	}
	return false
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null" && isPlain(n)
}

// isPlain tells a scalar written without quotes.
func isPlain(n *yaml.Node) bool {
	const quoted = yaml.SingleQuotedStyle | yaml.DoubleQuotedStyle | yaml.LiteralStyle | yaml.FoldedStyle
	return n.Kind == yaml.ScalarNode && n.Style&quoted == 0
}

func describe(n *yaml.Node) string {
	switch {
	case isNull(n):
		return "nothing"
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.ScalarNode:
		return fmt.Sprintf("%q", clip(n.Value))
	}
	return "something else"
}

// clip bounds what an error quotes of the source.
func clip(s string) string {
	const quoted = 60 // bytes
	if len(s) <= quoted {
		return s
	}
	return strings.ToValidUTF8(s[:quoted], "") + "…"
}
