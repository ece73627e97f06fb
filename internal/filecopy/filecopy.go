// Package filecopy moves files into and out of a root folder as tar streams,
// by the rules of GNU "cp -a". It resolves every path inside the root, whatever
// links a hostile tree or stream holds, and it runs nothing.
//
// The first entry of a stream is the source itself, named by its last element
// ("." for a folder's contents); all other entries lie below it.
//
// Where a source S goes when copied to D (Target):
//
//	S           D                        result
//	file        missing, parent there    D
//	file        file                     D, overwritten
//	file        folder                   D/base(S)
//	file        "D/" missing             refused, nothing is created
//	file        "D/" is a file           refused
//	folder      missing, parent there    D (also when written "D/")
//	folder      folder                   D/base(S), merged when it is there
//	folder      file                     refused
//	folder/.    folder                   contents into D
//	folder/.    missing, parent there    contents into the new D
//	any         parent missing           refused
//	file over an existing folder of that name, or folder over a file: refused
//
// "S/" is S, and refused when it is no folder. A name that only ends in a dot
// is a name like any other. Links are copied as links, unless the source ends
// in "/" or "/.".
package filecopy

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
)

// Kind of what is at a path.
type Kind int

// What a path can be: all that is neither folder nor missing is a file.
const (
	Missing Kind = iota
	File
	Dir
)

// Base is the name that source has in a folder that it is copied to; "." means
// its contents.
func Base(source string) string {
	trimmed := strings.TrimRight(source, "/")
	if trimmed == "" { // "" or "/"
		return "."
	}
	base := trimmed[strings.LastIndexByte(trimmed, '/')+1:]
	if base == ".." {
		return "."
	}
	return base
}

// wantsDir tells whether name can only mean a folder.
func wantsDir(name string) bool {
	return strings.HasSuffix(name, "/") || Base(name) == "."
}

// Target decides the path that source, of the given kind, gets when copied to
// dest. The function kind looks at paths of the destination, following links.
func Target(source string, sourceKind Kind, dest string, kind func(string) Kind) (string, error) {
	if sourceKind == Missing {
		return "", fmt.Errorf("copy %q: no such file or folder: %w", source, errdefs.ErrNotFound)
	}
	if sourceKind == File && wantsDir(source) {
		return "", fmt.Errorf("copy %q: not a folder: %w", source, errdefs.ErrInvalidArgument)
	}
	if dest == "" {
		return "", fmt.Errorf("copy %q: the destination has no name: %w", source, errdefs.ErrInvalidArgument)
	}
	name := strings.TrimRight(dest, "/")
	if name == "" {
		name = "/"
	}
	switch kind(name) {
	case Dir:
		return intoDir(source, sourceKind, name, kind)
	case File:
		if wantsDir(dest) || sourceKind == Dir {
			return "", fmt.Errorf("copy to %q: not a folder: %w", dest, errdefs.ErrInvalidArgument)
		}
		return name, nil
	}
	if Base(dest) == "." || sourceKind == File && wantsDir(dest) {
		return "", fmt.Errorf("copy to %q: no such folder: %w", dest, errdefs.ErrNotFound)
	}
	if parent := path.Dir(name); kind(parent) != Dir {
		return "", fmt.Errorf("copy to %q: no such folder: %q: %w", dest, parent, errdefs.ErrNotFound)
	}
	return name, nil
}

// intoDir is Target for a destination that is a folder.
func intoDir(source string, sourceKind Kind, dir string, kind func(string) Kind) (string, error) {
	base := Base(source)
	if base == "." {
		return dir, nil
	}
	target := strings.TrimSuffix(dir, "/") + "/" + base
	if there := kind(target); there != Missing && there != sourceKind {
		if sourceKind == Dir {
			return "", fmt.Errorf("copy to %q: a file is in the way of a folder: %w", target, errdefs.ErrInvalidArgument)
		}
		return "", fmt.Errorf("copy to %q: a folder is in the way of a file: %w", target, errdefs.ErrInvalidArgument)
	}
	return target, nil
}
