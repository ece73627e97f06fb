package workload

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
)

// classes stand at the end of errors for programs; people have no use for them.
var classes = []error{
	errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrPermissionDenied,
	errdefs.ErrUnauthenticated, errdefs.ErrResourceExhausted, errdefs.ErrFailedPrecondition, errdefs.ErrConflict,
	errdefs.ErrAborted, errdefs.ErrOutOfRange, errdefs.ErrNotImplemented, errdefs.ErrUnavailable,
	errdefs.ErrDataLoss, errdefs.ErrInternal, errdefs.ErrUnknown,
}

// sentence tells in a workload's status what failed, and what serves meanwhile.
// Whoever shows a status names the workload, so that the error need not.
func sentence(err error, name string, status *v1.WorkloadStatus) string {
	return meanwhile(plain(err, name), status)
}

// meanwhile adds to what the wanted generation is stuck on what serves.
func meanwhile(text string, status *v1.WorkloadStatus) string {
	if status.RunningGeneration == 0 || status.RunningGeneration == status.Generation {
		return text
	}
	return fmt.Sprintf("%s; generation %d keeps running", text, status.RunningGeneration)
}

// plain is an error without the workload's name before it and without the
// classes at the ends of its lines.
func plain(err error, name string) string {
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		for _, lead := range []string{"prepare ", "start ", ""} {
			line = strings.TrimPrefix(line, fmt.Sprintf("%sworkload %q: ", lead, name))
		}
		for _, class := range classes {
			line = strings.TrimSuffix(line, ": "+class.Error())
		}
		lines[i] = line
	}
	return strings.Join(lines, "\n")
}
