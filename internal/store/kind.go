package store

import (
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
)

// What an object holds depends on its kind. All that the store has to know of
// kinds is here; a new one is added to each of these functions.

// specOf gives what was declared, nil when the object has none that this
// version knows.
func specOf(obj *v1.Object) proto.Message {
	if s := obj.GetWorkload().GetSpec(); s != nil {
		return s
	}
	if s := obj.GetVolume().GetSpec(); s != nil {
		return s
	}
	if s := obj.GetCapsule().GetSpec(); s != nil {
		return s
	}
	if s := obj.GetSecret().GetSealed(); s != nil { // never what was declared
		return s
	}
	return nil
}

// statusOf gives the status that obj carries, nil when there is none.
func statusOf(obj *v1.Object) proto.Message {
	if s := obj.GetWorkload().GetStatus(); s != nil {
		return s
	}
	if s := obj.GetVolume().GetStatus(); s != nil {
		return s
	}
	if s := obj.GetCapsule().GetStatus(); s != nil {
		return s
	}
	return nil
}

// pending is the status of an object that no loop has looked at yet, nil for a
// kind that this version does not know.
func pending(obj *v1.Object) proto.Message {
	switch obj.GetKind().(type) {
	case *v1.Object_Workload:
		return &v1.WorkloadStatus{Phase: v1.Phase_PHASE_PENDING}
	case *v1.Object_Volume:
		return &v1.VolumeStatus{Phase: v1.VolumePhase_VOLUME_PHASE_PENDING}
	case *v1.Object_Capsule:
		return &v1.CapsuleStatus{Phase: v1.CapsulePhase_CAPSULE_PHASE_PENDING}
	}
	return nil
}

// put makes part, a spec or a status, the one of obj.
func put(obj *v1.Object, part proto.Message) {
	switch part.(type) {
	case *v1.WorkloadSpec, *v1.WorkloadStatus:
		if obj.GetWorkload() == nil {
			obj.Kind = &v1.Object_Workload{Workload: &v1.Workload{}}
		}
	case *v1.VolumeSpec, *v1.VolumeStatus:
		if obj.GetVolume() == nil {
			obj.Kind = &v1.Object_Volume{Volume: &v1.Volume{}}
		}
	case *v1.CapsuleSpec, *v1.CapsuleStatus:
		if obj.GetCapsule() == nil {
			obj.Kind = &v1.Object_Capsule{Capsule: &v1.Capsule{}}
		}
	case *v1.SealedSecret:
		if obj.GetSecret() == nil {
			obj.Kind = &v1.Object_Secret{Secret: &v1.Secret{}}
		}
	}
	switch part := part.(type) {
	case *v1.WorkloadSpec:
		obj.GetWorkload().Spec = part
	case *v1.WorkloadStatus:
		obj.GetWorkload().Status = part
	case *v1.VolumeSpec:
		obj.GetVolume().Spec = part
	case *v1.VolumeStatus:
		obj.GetVolume().Status = part
	case *v1.CapsuleSpec:
		obj.GetCapsule().Spec = part
	case *v1.CapsuleStatus:
		obj.GetCapsule().Status = part
	case *v1.SealedSecret:
		obj.GetSecret().Sealed = part
	}
}

// fits tells whether obj holds what its kind says.
func fits(obj *v1.Object) bool {
	switch class(obj.GetMeta().GetKind()) {
	case classVolume:
		return obj.GetVolume() != nil
	case classCapsule:
		return obj.GetCapsule() != nil
	case classSecret:
		return obj.GetSecret() != nil
	}
	return obj.GetWorkload() != nil
}

// bare is a copy of obj without its status.
func bare(obj *v1.Object) *v1.Object {
	obj = proto.CloneOf(obj)
	switch kind := obj.GetKind().(type) {
	case *v1.Object_Workload:
		kind.Workload.Status = nil
	case *v1.Object_Volume:
		kind.Volume.Status = nil
	case *v1.Object_Capsule:
		kind.Capsule.Status = nil
	case *v1.Object_Secret:
		kind.Secret.Spec, kind.Secret.Status = nil, nil
	}
	return obj
}
