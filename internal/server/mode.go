package server

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
)

// recoverable methods need more than a reader and yet work in recovery mode.
var recoverable = map[string]bool{
	capsulev1.CapsuleService_Reboot_FullMethodName:         true,
	capsulev1.CapsuleService_Shutdown_FullMethodName:       true,
	capsulev1.CapsuleService_RestartService_FullMethodName: true,
	capsulev1.UpdateService_Rollback_FullMethodName:        true,
	capsulev1.CapsuleService_Audit_FullMethodName:          true, // it only reads
	capsulev1.DebugService_Run_FullMethodName:              true, // it is what this mode is for
	capsulev1.SupportService_Collect_FullMethodName:        true, // as above
	capsulev1.SupportService_Capture_FullMethodName:        true, // as above
}

// Services that the installer has: there are no workloads, and nothing to declare.
var installing = []string{
	capsulev1.InstallService_ServiceDesc.ServiceName,
	capsulev1.BackupService_StageRestore_FullMethodName[1:],
	capsulev1.AccessService_ServiceDesc.ServiceName,
	capsulev1.CapsuleService_ServiceDesc.ServiceName,
	capsulev1.DebugService_ServiceDesc.ServiceName,
	capsulev1.SupportService_ServiceDesc.ServiceName,
	"grpc.reflection.",
}

// suits says whether a method is for the mode that the capsule came up in.
func suits(method string, needs capsulev1.Role, mode capsulev1.Mode, reason string) error {
	of := func(service string) bool { return strings.HasPrefix(method, "/"+service) }
	switch {
	case mode == capsulev1.Mode_MODE_INSTALLER:
		for _, service := range installing {
			if of(service) {
				return nil
			}
		}
		return fmt.Errorf("this machine was started from a stick and only installs: run \"capsulectl install\", and pull the stick: %w", errdefs.ErrFailedPrecondition)
	case of(capsulev1.InstallService_ServiceDesc.ServiceName):
		return fmt.Errorf("this capsule runs from its own disk: a machine that is started from a stick can be installed: %w", errdefs.ErrFailedPrecondition)
	case mode == capsulev1.Mode_MODE_RECOVERY && changes(needs) && !recoverable[method]:
		return fmt.Errorf("the capsule is in recovery mode and changes nothing (%s); \"capsulectl capsule update rollback\" goes back to the system before: %w", reason, errdefs.ErrFailedPrecondition)
	}
	return nil
}
