package manifest

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"time"

	yaml "go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
)

const durationName = protoreflect.FullName("google.protobuf.Duration")

// isLimit tells a size whose absence means no limit.
func isLimit(f protoreflect.FieldDescriptor) bool {
	switch f.Parent().FullName() {
	case (*capsulev1.Resources)(nil).ProtoReflect().Descriptor().FullName():
		return f.Name() == "memory"
	case (*capsulev1.IO)(nil).ProtoReflect().Descriptor().FullName():
		return true
	}
	return false
}

// field reads the value of one field of m.
func (d *document) field(m protoreflect.Message, f protoreflect.FieldDescriptor, n *yaml.Node, path string) {
	d.at[path] = n
	if !d.plain(n) {
		d.bad[path] = true
		return
	}
	if isNull(n) {
		d.bad[path] = true
		d.fail(n, "%s has no value; give one or remove the line", path)
		return
	}
	switch {
	case f.IsMap():
		d.mapping(m.Mutable(f).Map(), f, n, path)
	case f.IsList():
		d.list(m, f, n, path)
	default:
		if v, ok := d.value(m.NewField(f), f, n, path); ok {
			m.Set(f, v)
		} else {
			d.bad[path] = true
		}
	}
}

func (d *document) list(m protoreflect.Message, f protoreflect.FieldDescriptor, n *yaml.Node, path string) {
	if n.Kind != yaml.SequenceNode {
		d.bad[path] = true
		d.fail(n, "%s: want a list, found %s%s", path, describe(n), lineHint(path, n))
		return
	}
	if len(n.Content) == 0 && f.Kind() == protoreflect.StringKind {
		d.bad[path] = true
		d.fail(n, "%s: an empty list replaces nothing; remove the line", path)
		return
	}
	if len(n.Content) > entriesMax {
		d.bad[path] = true
		d.fail(n, "%s: more than %d entries", path, entriesMax)
		return
	}
	list := m.Mutable(f).List()
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		d.at[at] = item
		v, ok := list.NewElement(), d.plain(item)
		if ok {
			v, ok = d.value(v, f, item, at)
		}
		if !ok {
			d.bad[at] = true
			v = list.NewElement() // keeps the places of those that follow
		}
		list.Append(v)
	}
}

// mapping reads a map of text to text or to bytes, the only kinds of map in a spec.
func (d *document) mapping(out protoreflect.Map, f protoreflect.FieldDescriptor, n *yaml.Node, path string) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, "%s: want NAME: value pairs, found %s", path, describe(n))
		return
	}
	d.eachKey(n, func(key, value *yaml.Node) {
		at := path + "." + key.Value
		d.at[at] = value
		if !d.plain(value) {
			return
		}
		if isNull(key) {
			d.fail(key, "%s: %q is no name; quote it if it is meant", path, key.Value)
			return
		}
		v := protoreflect.ValueOfString(d.text(value, at))
		if isBytes(f) {
			data, err := parseBytes(v.String())
			if err != nil {
				d.fail(value, "%s: %v", at, err)
			}
			v = protoreflect.ValueOfBytes(data)
		}
		out.Set(protoreflect.ValueOfString(key.Value).MapKey(), v)
	})
}

// value reads a single value; v is a new one of the field's type.
func (d *document) value(v protoreflect.Value, f protoreflect.FieldDescriptor, n *yaml.Node, path string) (protoreflect.Value, bool) {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return d.message(v, f, n, path)
	case protoreflect.StringKind:
		before := len(d.errs.All)
		s := d.text(n, path)
		return protoreflect.ValueOfString(s), len(d.errs.All) == before
	case protoreflect.BoolKind:
		if isPlain(n) && (n.Value == "true" || n.Value == "false") {
			return protoreflect.ValueOfBool(n.Value == "true"), true
		}
		d.fail(n, "%s: want true or false, found %s", path, describe(n))
		return v, false
	case protoreflect.Int64Kind, protoreflect.Uint32Kind:
		return d.number(f, n, path)
	}
	d.fail(n, "%s: can't be written in a manifest", path)
	return v, false
}

func (d *document) message(v protoreflect.Value, f protoreflect.FieldDescriptor, n *yaml.Node, path string) (protoreflect.Value, bool) {
	name := f.Message().FullName()
	if name == durationName {
		t, err := parseDuration(d.text(n, path))
		if err != nil {
			d.fail(n, "%s: %v", path, err)
			return v, false
		}
		return protoreflect.ValueOfMessage(durationpb.New(t).ProtoReflect()), true
	}
	short, hasShort := shortForms[name]
	if n.Kind == yaml.ScalarNode && hasShort && !isNull(n) {
		m, err := short.parse(n.Value)
		if err != nil {
			d.fail(n, "%s: %v", path, err)
			return v, false
		}
		return protoreflect.ValueOfMessage(m.ProtoReflect()), true
	}
	if n.Kind != yaml.MappingNode {
		want := "fields"
		if hasShort {
			want = fmt.Sprintf("%q or fields", short.form)
		}
		d.fail(n, "%s: want %s, found %s", path, want, describe(n))
		return v, false
	}
	fields := f.Message().Fields()
	d.eachKey(n, func(key, value *yaml.Node) {
		if sub := fields.ByJSONName(key.Value); sub != nil {
			d.field(v.Message(), sub, value, path+"."+key.Value)
			return
		}
		d.bad[path+"."+d.unknownField(key, fields, nil)] = true
	})
	return v, true
}

// text takes a scalar's exact source text.
func (d *document) text(n *yaml.Node, path string) string {
	switch {
	case !d.plain(n):
	case isNull(n):
		d.fail(n, "%s: %q is YAML's word for nothing; quote it if it is meant as text", path, n.Value)
	case n.Kind != yaml.ScalarNode:
		d.fail(n, "%s: want text, found %s", path, describe(n))
	default:
		return n.Value
	}
	return ""
}

var decimal = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)

func (d *document) number(f protoreflect.FieldDescriptor, n *yaml.Node, path string) (v protoreflect.Value, ok bool) {
	if n.Kind != yaml.ScalarNode {
		d.fail(n, "%s: want a number, found %s", path, describe(n))
		return v, false
	}
	var x int64
	var err error
	switch format(f) {
	case capsulev1.Format_FORMAT_SIZE:
		hint := ""
		if isLimit(f) {
			hint = noLimit
		}
		x, err = parseSize(n.Value, hint)
	case capsulev1.Format_FORMAT_CPUS:
		x, err = parseCPUs(n.Value)
	default:
		x, err = parseDecimal(n, f.Kind())
	}
	if err != nil {
		d.fail(n, "%s: %v", path, err)
		return v, false
	}
	if f.Kind() == protoreflect.Uint32Kind {
		return protoreflect.ValueOfUint32(uint32(x)), true
	}
	return protoreflect.ValueOfInt64(x), true
}

func parseDecimal(n *yaml.Node, kind protoreflect.Kind) (int64, error) {
	if !isPlain(n) {
		return 0, invalid("want a number without quotes, found %q", clip(n.Value))
	}
	if !decimal.MatchString(n.Value) {
		return 0, invalid("want a decimal number, found %q", clip(n.Value))
	}
	x, err := strconv.ParseInt(n.Value, 10, 64)
	// Zero means "not given" in the message: written out it says something else.
	if err != nil || x <= 0 || (kind == protoreflect.Uint32Kind && x > math.MaxUint32) {
		return 0, invalid("%s is out of range", clip(n.Value))
	}
	return x, nil
}

func format(f protoreflect.FieldDescriptor) capsulev1.Format {
	v, _ := proto.GetExtension(f.Options(), capsulev1.E_Format).(capsulev1.Format)
	return v
}

var (
	duration = regexp.MustCompile(`^([0-9]{1,9}(ms|s|m|h))+$`)

	days = regexp.MustCompile(`(?i)^[0-9]+ ?(d|days?|w|weeks?)$`)
)

// parseDuration reads "10s", "1m30s" or "500ms". A bare number is refused.
func parseDuration(s string) (time.Duration, error) {
	if days.MatchString(s) {
		return 0, invalid("want a time in h, m, s or ms, found %q; a day is written \"24h\"", clip(s))
	}
	if !duration.MatchString(s) {
		return 0, invalid("want a time with its unit such as \"10s\" or \"1m30s\", found %q", clip(s))
	}
	t, err := time.ParseDuration(s)
	if err != nil {
		return 0, invalid("%q is out of range", clip(s))
	}
	return t, nil
}
