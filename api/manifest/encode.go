package manifest

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
)

// Encode writes an object's manifest: kind, name, then the spec's fields that
// are set, in the order of the message and with sorted maps. Equal objects give
// equal bytes, and Decode reads them back.
func Encode(o *capsulev1.Object) ([]byte, error) {
	var e encoder
	err := e.object(o)
	return e.out.Bytes(), err
}

type encoder struct {
	out   bytes.Buffer
	bytes bool // sizes stand in bytes too, as a comment
}

func (e *encoder) object(o *capsulev1.Object) error {
	var spec protoreflect.Message
	switch {
	case o.GetWorkload().GetSpec() != nil:
		spec = o.GetWorkload().GetSpec().ProtoReflect()
	case o.GetVolume().GetSpec() != nil:
		spec = o.GetVolume().GetSpec().ProtoReflect()
	case o.GetSecret().GetSpec() != nil:
		spec = o.GetSecret().GetSpec().ProtoReflect()
	case o.GetCapsule().GetSpec() != nil:
		spec = o.GetCapsule().GetSpec().ProtoReflect()
	default:
		return invalid("%s %q has no spec", o.GetMeta().GetKind(), o.GetMeta().GetName())
	}
	e.line(0, "kind: "+scalar(o.GetMeta().GetKind()))
	e.line(0, "name: "+scalar(o.GetMeta().GetName()))
	e.fields(spec, 0)
	return nil
}

func (e *encoder) line(indent int, text string) {
	e.out.WriteString(strings.TrimRight(strings.Repeat("  ", indent)+text, " ") + "\n")
}

func (e *encoder) fields(m protoreflect.Message, indent int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if isNetwork(f) {
			e.network(m, indent)
			continue
		}
		if !m.Has(f) || isWithinNetwork(f) {
			continue
		}
		name, v := f.JSONName(), m.Get(f)
		switch {
		case f.IsMap():
			e.line(indent, name+":")
			e.mapping(f, v.Map(), indent+1)
		case f.IsList():
			e.line(indent, name+":")
			for i := range v.List().Len() {
				e.item(f, v.List().Get(i), indent+1)
			}
		case isNested(f, v):
			if hasFields(v.Message()) {
				e.line(indent, name+":")
				e.fields(v.Message(), indent+1)
			}
		case f.Kind() == protoreflect.StringKind && isBlock(v.String()):
			e.block(name, v.String(), indent)
		default:
			e.line(indent, name+": "+text(f, v)+e.comment(f, v))
		}
	}
}

// item writes an entry of a list: in its short form where that holds all of it.
func (e *encoder) item(f protoreflect.FieldDescriptor, v protoreflect.Value, indent int) {
	if !isNested(f, v) {
		e.line(indent, "- "+text(f, v))
		return
	}
	var fields encoder
	fields.fields(v.Message(), 0)
	mark := "- "
	for line := range strings.Lines(fields.out.String()) {
		e.line(indent, mark+strings.TrimSuffix(line, "\n"))
		mark = "  "
	}
}

// comment is how many bytes a size is, where that does not stand there.
func (e *encoder) comment(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	if !e.bytes || format(f) != capsulev1.Format_FORMAT_SIZE {
		return ""
	}
	return fmt.Sprintf(" # %d bytes", v.Int())
}

func hasFields(m protoreflect.Message) bool {
	any := false
	m.Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool { any = true; return false })
	return any
}

// isNested tells a message that is written as fields of its own.
func isNested(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
	if f.Message() == nil || f.Message().FullName() == durationName {
		return false
	}
	short, ok := shortForms[f.Message().FullName()]
	return !ok || !short.holds(v.Message().Interface())
}

func (e *encoder) mapping(f protoreflect.FieldDescriptor, m protoreflect.Map, indent int) {
	values := map[string]string{}
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if isBytes(f) {
			values[k.String()] = base64.StdEncoding.EncodeToString(v.Bytes())
		} else {
			values[k.String()] = v.String()
		}
		return true
	})
	for _, k := range sortedKeys(values) {
		e.line(indent, scalar(k)+": "+scalar(values[k]))
	}
}

// text writes a single value.
func text(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch {
	case f.Message() != nil && f.Message().FullName() == durationName:
		return formatDuration(v.Message().Interface().(*durationpb.Duration).AsDuration())
	case f.Message() != nil:
		return scalar(shortForms[f.Message().FullName()].format(v.Message().Interface()))
	case f.Kind() == protoreflect.StringKind:
		return scalar(v.String())
	case format(f) == capsulev1.Format_FORMAT_SIZE:
		return FormatSize(v.Int())
	case format(f) == capsulev1.Format_FORMAT_CPUS:
		return formatCPUs(v.Int())
	}
	return v.String()
}

// formatDuration writes "10s", "5m" or "1m30s".
func formatDuration(t time.Duration) string {
	s := t.Round(time.Millisecond).String()
	if ms := t.Milliseconds(); ms%1000 != 0 {
		return strconv.FormatInt(ms, 10) + "ms"
	}
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

var (
	// bare text that every YAML reader takes as text.
	bare = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./@-]*(:[A-Za-z0-9_./@-]+)*$`)
	// words that some reader takes for something else.
	special = regexp.MustCompile(`(?i)^(y|n|yes|no|on|off|true|false|null)$`)
)

// scalar writes text so that every YAML reader gets exactly it.
func scalar(s string) string {
	if bare.MatchString(s) && !special.MatchString(s) {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case strconv.IsPrint(r):
			b.WriteRune(r)
		case r <= 0xFFFF:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			fmt.Fprintf(&b, `\U%08X`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
