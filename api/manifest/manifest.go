// Package manifest turns the YAML that operators write into the messages of the
// API and back, and holds the rules that both sides check them by. There is no
// second model: fields, their names and their types come from the message's
// descriptor. It never talks to a capsule.
//
// A manifest is flat: kind, name, then the fields of the spec. It is read
// strictly. Text fields take exactly the characters of the source, so that
// neither "yes" nor 1.10 nor 010 turns into something else; numbers are decimal;
// anchors, aliases, merge keys and tags are refused.
package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	yaml "go.yaml.in/yaml/v4"

	capsulev1 "capsule/api/capsule/v1"
)

// The kinds of objects, as Meta.kind has them.
const (
	KindContainer = "Container"
	KindMicroVM   = "MicroVM"
	KindVolume    = "Volume"
	KindSecret    = "Secret"
	// KindCapsule is the machine itself: one object, named CapsuleName.
	KindCapsule = "Capsule"
)

// CapsuleName is the name of the one object of kind Capsule; a manifest may leave
// it out.
const CapsuleName = "capsule"

// Limits of what is read.
const (
	MaxBytes   = 1 << 20 // of one manifest file
	MaxObjects = 500     // of one manifest file, and of one apply
	maxErrors  = 20      // reported at once
	entriesMax = 4096    // of any list or mapping, before its own limit is looked at
)

// Decode reads every document of a manifest. On any error it returns no object;
// the error is an *Errors with a place for each. name stands in front of the
// places, usually the file's.
func Decode(name string, r io.Reader) ([]*capsulev1.Object, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	errs := &Errors{}
	if len(data) > MaxBytes {
		errs.add(Error{File: name, Line: 1, Column: 1, Message: fmt.Sprintf("manifest is larger than %s", FormatSize(MaxBytes))})
		return nil, errs
	}
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	if !utf8.Valid(data) {
		line, column := invalidPlace(data)
		errs.add(Error{File: name, Line: line, Column: column, Message: "not UTF-8 text"})
		return nil, errs
	}
	docs := decodeDocuments(name, data, errs)
	checkUnique(docs, errs)
	if len(errs.All) > 0 {
		errs.sort()
		return nil, errs
	}
	objs := make([]*capsulev1.Object, 0, len(docs))
	for _, d := range docs {
		objs = append(objs, d.object)
	}
	return objs, nil
}

// decodeDocuments reads the documents that are not empty. A syntax error ends
// the reading, since what follows it can't be placed.
func decodeDocuments(name string, data []byte, errs *Errors) []*document {
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		errs.add(syntaxError(name, err))
		return nil
	}
	var docs []*document
	for {
		var root yaml.Node
		err := loader.Load(&root)
		if errors.Is(err, io.EOF) {
			return docs
		}
		if err != nil {
			errs.add(syntaxError(name, err))
			return docs
		}
		body := &root
		if root.Kind == yaml.DocumentNode {
			if len(root.Content) == 0 {
				continue
			}
			body = root.Content[0]
		}
		if isNull(body) && body.Anchor == "" {
			continue
		}
		d := &document{file: name, errs: errs, at: map[string]*yaml.Node{"": body}, bad: map[string]bool{}}
		if len(docs) == MaxObjects {
			d.fail(body, "more than %d objects in one manifest", MaxObjects)
			return docs
		}
		d.decode(body)
		docs = append(docs, d)
	}
}

// syntaxError places an error of the YAML reader.
func syntaxError(name string, err error) Error {
	e := Error{File: name, Line: 1, Column: 1, Message: "not valid YAML: " + err.Error()}
	var load *yaml.LoadError
	if errors.As(err, &load) {
		e.Message = "not valid YAML: " + load.Message
		if load.Mark.Line > 0 {
			e.Line, e.Column = load.Mark.Line, max(load.Mark.Column, 1)
		}
	}
	return e
}

func invalidPlace(data []byte) (line, column int) {
	line, column = 1, 1
	for len(data) > 0 {
		r, n := utf8.DecodeRune(data)
		if r == utf8.RuneError && n == 1 {
			return line, column
		}
		column++
		if r == '\n' {
			line, column = line+1, 1
		}
		data = data[n:]
	}
	return line, column
}

// checkUnique refuses what would overwrite itself within one manifest.
func checkUnique(docs []*document, errs *Errors) {
	seen := map[string]*document{}
	for _, d := range docs {
		kind, name := d.object.GetMeta().GetKind(), d.object.GetMeta().GetName()
		if name == "" {
			continue
		}
		first, ok := seen[uniqueKey(kind, name)]
		if !ok {
			seen[uniqueKey(kind, name)] = d
			continue
		}
		at, firstKind, line := d.place("name"), first.object.Meta.Kind, first.place("name").Line
		if kind == firstKind {
			d.fail(at, "%s %q is already declared in line %d", kind, name, line)
		} else {
			d.fail(at, "the name %q is already used by the %s in line %d; workloads of both kinds share their names", name, firstKind, line)
		}
	}
}

// uniqueKey is the same for two objects that can't both be.
func uniqueKey(kind, name string) string {
	if isWorkload(kind) {
		kind = "workload"
	}
	return kind + "/" + name
}

// Unique refuses a list that names an object twice, as Decode does in one file.
func Unique(objs []*capsulev1.Object) error {
	seen := map[string]string{}
	for _, o := range objs {
		kind, name := o.GetMeta().GetKind(), o.GetMeta().GetName()
		key := uniqueKey(kind, name)
		first, ok := seen[key]
		switch {
		case !ok:
			seen[key] = kind
		case first == kind:
			return invalid("%s %q is declared twice", kind, name)
		default:
			return invalid("the name %q is used by a %s and a %s; workloads of both kinds share their names", name, first, kind)
		}
	}
	return nil
}
