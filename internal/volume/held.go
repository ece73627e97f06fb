package volume

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// Why a workload is held when nobody has the volume: what follows its name.
const (
	reasonMissing  = "which does not exist; starts by itself once it is created"
	reasonDeleting = "which is being deleted; starts by itself once it is created again"
	reasonUnmade   = "which is being made; starts by itself once that is done"
	reasonTrouble  = "which is not made yet: %s; starts by itself once it is"
	reasonNoSpace  = "which its first mount is to fill: %s; starts by itself once there is"
	reasonDamaged  = "which is %s"
	reasonBusy     = "which the system has not let go of yet; starts by itself once it has"
)

// nextStep for a volume that can't be mounted, twice its name.
const nextStep = "restore a snapshot of it (capsulectl volume snapshots %s; capsulectl volume restore %s SNAPSHOT), or delete it"

// classes stand at the end of errors for programs; people have no use for them.
var classes = []error{
	errdefs.ErrDataLoss, errdefs.ErrNotFound, errdefs.ErrUnavailable, errdefs.ErrResourceExhausted,
	errdefs.ErrFailedPrecondition, errdefs.ErrInvalidArgument,
}

// plain is an error as one line without its class.
func plain(err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		for _, class := range classes {
			line = strings.TrimSuffix(line, ": "+class.Error())
		}
		lines[i] = line
	}
	return strings.Join(lines, "; ")
}

// HeldError says that a workload can't have a volume now. It can once something
// else has happened, which Options.Freed tells.
type HeldError struct {
	Volume string
	Holder string // the workload that has it; "" when it is for another reason
	Reason string // without a holder: why, and what would change it
}

// Error is the sentence for the workload's status.
func (e *HeldError) Error() string {
	if e.Holder != "" {
		return fmt.Sprintf("waits for volume %q, which workload %q holds; starts by itself once that is stopped or deleted", e.Volume, e.Holder)
	}
	return fmt.Sprintf("waits for volume %q, %s", e.Volume, e.Reason)
}

// Unwrap gives its class.
func (e *HeldError) Unwrap() error { return errdefs.ErrFailedPrecondition }
