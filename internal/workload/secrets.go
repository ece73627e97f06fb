package workload

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/secret"
)

// Secrets gives the values that workloads name.
type Secrets interface {
	// Value of "SECRET/KEY". A *secret.HeldError says what has to be waited for.
	Value(ref string) ([]byte, error)
}

// lacking says in a world which secrets have to be waited for by what does not run.
func (l *Loop) lacking(w *world, before *v1.Object) (err error) {
	if runs(w.Seen, w.Object.Meta) {
		return nil
	}
	if w.Lacks, err = l.lacks(w.Object); err != nil || before == nil || w.OldWaits || runs(w.Seen, before.Meta) {
		return err
	}
	old, err := l.lacks(before)
	w.OldWaits = old != ""
	return err
}

// lacks says which secret an object has to wait for, "" for none.
func (l *Loop) lacks(obj *v1.Object) (string, error) {
	for _, ref := range secret.Refs(obj) {
		_, err := l.opts.Secrets.Value(ref)
		if held := (*secret.HeldError)(nil); errors.As(err, &held) {
			return "waits, as " + held.Error(), nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", nil
}

// files of an object as a driver prepares them: what is in secrets comes with a start.
func files(obj *v1.Object) []File {
	var list []File
	for _, f := range obj.GetWorkload().GetSpec().GetFiles() {
		list = append(list, File{Path: f.GetPath(), Content: []byte(f.GetContent()), Mode: manifest.Mode(f), Owner: f.GetOwner()})
	}
	return list
}

// reveal gives an instance that is about to start what its object has in secrets.
func (l *Loop) reveal(in *Instance, obj *v1.Object) error {
	spec := obj.GetWorkload().GetSpec()
	size := 0
	for i, f := range spec.GetFiles() {
		if ref := f.GetSecret(); ref != "" {
			value, err := l.opts.Secrets.Value(ref)
			if err != nil {
				return err
			}
			in.Files[i].Content = value
		}
		if size += len(in.Files[i].Content); size > manifest.FilesBytesMax {
			return fmt.Errorf("files hold more than %s together with what is in secrets: %w", manifest.FormatSize(manifest.FilesBytesMax), errdefs.ErrInvalidArgument)
		}
	}
	size = 0
	for _, text := range slices.Concat(in.Args, in.Env) {
		size += len(text) + 1
	}
	for _, name := range slices.Sorted(maps.Keys(spec.GetSecretEnv())) {
		ref := spec.GetSecretEnv()[name]
		value, err := l.opts.Secrets.Value(ref)
		if err != nil {
			return err
		}
		if bytes.IndexByte(value, 0) >= 0 {
			return fmt.Errorf("secretEnv.%s: %q holds a NUL character, which no program can be given in a variable; show it as a file: %w", name, ref, errdefs.ErrInvalidArgument)
		}
		in.SecretEnv = append(in.SecretEnv, name+"="+string(value))
		if size += len(name) + len(value) + 2; size > manifest.ArgvBytesMax {
			return fmt.Errorf("command, args and env hold more than %d bytes together with secretEnv: %w", manifest.ArgvBytesMax, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// SecretChanged has the workloads looked at that name a secret, or any when the name
// is "": what they wait for may be there.
func (l *Loop) SecretChanged(name string) {
	objs, err := l.opts.Store.List("")
	if err != nil {
		slog.Error("list workloads that wait for a secret", "secret", name, "error", err)
		return // the full pass goes on
	}
	for _, obj := range objs {
		if obj.GetWorkload() == nil {
			continue
		}
		for _, ref := range secret.Refs(obj) {
			if name == "" || strings.HasPrefix(ref, name+"/") {
				l.Wake(obj.Meta.Name)
				break
			}
		}
	}
}
