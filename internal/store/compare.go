package store

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// equalKnown compares what this version knows of two specs.
func equalKnown(a, b proto.Message) bool {
	if a == nil || b == nil {
		return a == b
	}
	a, b = proto.Clone(a), proto.Clone(b)
	stripUnknown(a.ProtoReflect())
	stripUnknown(b.ProtoReflect())
	return proto.Equal(a, b)
}

func stripUnknown(m protoreflect.Message) {
	walkMessages(m, func(m protoreflect.Message) { m.SetUnknown(nil) })
}

func hasUnknown(m protoreflect.Message) bool {
	found := false
	walkMessages(m, func(m protoreflect.Message) { found = found || len(m.GetUnknown()) > 0 })
	return found
}

// walkMessages calls fn for m and every message in it.
func walkMessages(m protoreflect.Message, fn func(protoreflect.Message)) {
	fn(m)
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap() && fd.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				walkMessages(v.Message(), fn)
				return true
			})
		case fd.IsList() && fd.Message() != nil:
			for i := range v.List().Len() {
				walkMessages(v.List().Get(i).Message(), fn)
			}
		case !fd.IsMap() && !fd.IsList() && fd.Message() != nil:
			walkMessages(v.Message(), fn)
		}
		return true
	})
}
