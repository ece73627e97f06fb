package secret

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/store"
)

// Admit looks at objects that are being applied, in the transaction that does it. The
// workloads whose values a Secret among them changes are given a new generation, and
// so start anew, where their policy wants it. Notes by the uid of an object tell of
// that, and of values that are waited for.
func (b *Book) Admit(tx store.View, objs []*v1.Object) (notes map[string][]string, err error) {
	all, err := tx.List("")
	if err != nil {
		return nil, err
	}
	notes = map[string][]string{}
	changed := map[string]bool{}
	for _, obj := range objs {
		if obj.GetSecret() != nil {
			maps.Copy(changed, changedRefs(tx.Old(obj), obj))
		} else if waits := missing(all, obj); waits != nil {
			notes[obj.GetMeta().GetUid()] = waits
		}
	}
	if len(changed) == 0 {
		return notes, nil
	}
	for _, obj := range all {
		if ref := oneOf(changed, obj); ref != "" && restarts(obj) {
			if err := renew(tx, objs, obj, ref, notes); err != nil {
				return nil, err
			}
		}
	}
	return notes, nil
}

// oneOf is a changed value that the workload uses, "" when it uses none.
func oneOf(changed map[string]bool, obj *v1.Object) string {
	for _, ref := range Refs(obj) {
		if changed[ref] {
			return ref
		}
	}
	return ""
}

// missing tells which values a workload has to wait for.
func missing(all []*v1.Object, obj *v1.Object) (notes []string) {
	for _, ref := range Refs(obj) {
		name, key, _ := strings.Cut(ref, "/")
		i := slices.IndexFunc(all, func(o *v1.Object) bool { return o.GetSecret() != nil && o.GetMeta().GetName() == name })
		if i < 0 {
			notes = append(notes, fmt.Sprintf("it waits for secret %q, which is not declared", name))
		} else if _, found := all[i].GetSecret().GetSealed().GetValues()[key]; !found {
			notes = append(notes, fmt.Sprintf("it waits for secret %q, which has no key %q", name, key))
		}
	}
	return slices.Compact(notes)
}

// changedRefs are the values of a Secret that differ, are new or are gone.
func changedRefs(old, obj *v1.Object) map[string]bool {
	before, after := old.GetSecret().GetSealed().GetValues(), obj.GetSecret().GetSealed().GetValues()
	changed := map[string]bool{}
	for key, value := range after {
		if !is(before, key, value) {
			changed[obj.GetMeta().GetName()+"/"+key] = true
		}
	}
	for key := range before {
		if _, found := after[key]; !found {
			changed[obj.GetMeta().GetName()+"/"+key] = true
		}
	}
	return changed
}

// renew has a workload start anew, unless it does so for what was declared of it.
func renew(tx store.View, applied []*v1.Object, obj *v1.Object, ref string, notes map[string][]string) error {
	name, _, _ := strings.Cut(ref, "/")
	i := slices.IndexFunc(applied, func(o *v1.Object) bool { return o.GetMeta().GetUid() == obj.GetMeta().GetUid() })
	if i >= 0 && startsAnew(tx, applied[i]) {
		return nil
	}
	again, err := tx.Renew(obj.GetMeta().GetName(), "restarted", fmt.Sprintf("starts anew, as secret %q was changed", name))
	if err != nil {
		return err
	}
	if i >= 0 {
		applied[i].Meta = again.GetMeta()
	}
	for _, o := range applied {
		if o.GetSecret() != nil && o.GetMeta().GetName() == name {
			notes[o.GetMeta().GetUid()] = append(notes[o.GetMeta().GetUid()], fmt.Sprintf("workload %q uses it and starts anew", obj.GetMeta().GetName()))
		}
	}
	return nil
}

// restarts tells that a change is a reason for the workload to start anew.
func restarts(obj *v1.Object) bool {
	w := obj.GetWorkload()
	switch {
	case obj.GetMeta().GetDeletedAt() != nil, w.GetIntent().GetStopped():
		return false
	case w.GetStatus().GetPhase() == v1.Phase_PHASE_EXITED: // it has done its work
		return false
	case w.GetStatus().GetPhase() == v1.Phase_PHASE_PENDING && w.GetStatus().GetReason() == Reason: // it is about to start
		return false
	}
	return w.GetSpec().GetOnSecretChange() == manifest.OnSecretChangeRestart
}

// startsAnew tells that a workload starts anew for what was declared of it.
func startsAnew(tx store.View, obj *v1.Object) bool {
	old := tx.Old(obj)
	return old == nil || old.GetMeta().GetGeneration() != obj.GetMeta().GetGeneration()
}
