package server

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
)

// debugging is for looking into the machine itself.
type debugging struct {
	capsulev1.UnimplementedDebugServiceServer
	Options
}

// commandShown bounds what of a command is in the audit log, in bytes.
const commandShown = 512

func (s *debugging) Run(stream capsulev1.DebugService_RunServer) error {
	start, err := receiveStart(stream)
	if err != nil {
		return err
	}
	if start.GetName() != "" || start.GetUser() != "" || start.GetWorkingDir() != "" {
		return fmt.Errorf("debug runs as root in the machine itself: it takes no name, user or folder: %w", errdefs.ErrInvalidArgument)
	}
	if s.Debug == nil {
		return fmt.Errorf("this capsule has no tools to debug with: %w", errdefs.ErrNotImplemented)
	}
	begins(stream.Context(), shownCommand(start.GetCommand()))
	return runExec(stream, start, s.Debug)
}

// shownCommand is a command as it stands in the audit log. It may hold anything.
func shownCommand(command []string) string {
	if len(command) == 0 {
		return "a shell"
	}
	text := strings.ToValidUTF8(strings.Join(command, " "), "?")
	if len(text) > commandShown {
		text = strings.ToValidUTF8(text[:commandShown], "") + "…"
	}
	return text
}
