// Package state owns what of a capsule goes into a backup beside the data of volumes,
// and how another machine becomes that capsule: who it is, what is declared, and the
// keys of its secrets. It never touches a disk but by the folders that it is given.
//
//	a capsule                        a stick                     the new disk, first start
//	Source.Write ──▶ backup file ──▶ Stage: checked, in memory ──▶ ESP ──▶ Take
//
// Take is cut safely at any moment:
//
//	restore on the ESP ──unpack──▶ restore.new ──rename──▶ restore.ready
//	   ──move each file to its place, the store last──▶ restored.json ──▶ nothing on the ESP
//
// Until the store is in its place nothing else runs: it is what makes the disk a
// capsule's. A disk that has a store takes nothing.
package state

import (
	"fmt"
	"path"

	"github.com/containerd/errdefs"

	"capsule/internal/identity"
)

// Files of a backup, by their path in it and below /perm.
const (
	storeFile   = "state.db"
	keysFile    = "secret.keys"
	identityDir = "identity"
)

// allowed are all files that a backup may have.
func allowed() []string {
	files := []string{storeFile, keysFile}
	for _, name := range identity.FileNames {
		files = append(files, path.Join(identityDir, name))
	}
	return files
}

// ErrNewer says that the backup is of a system that is newer than this one.
var ErrNewer = fmt.Errorf("it was made by a newer version of the system, use a stick with that version: %w", errdefs.ErrFailedPrecondition)
