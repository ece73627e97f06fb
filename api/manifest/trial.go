package manifest

import (
	"time"

	"google.golang.org/protobuf/proto"

	capsulev1 "capsule/api/capsule/v1"
)

// TrialMax is how long a changed network of the machine is tried: it goes back
// unless it is confirmed by then.
const TrialMax = time.Minute

// SameNetwork tells whether two networks are declared alike: none is as by default,
// and so is an empty one.
func SameNetwork(a, b *capsulev1.CapsuleNetwork) bool {
	if a == nil {
		a = &capsulev1.CapsuleNetwork{}
	}
	if b == nil {
		b = &capsulev1.CapsuleNetwork{}
	}
	return proto.Equal(a, b)
}
