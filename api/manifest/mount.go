package manifest

import (
	"path"
	"slices"
	"strings"
	"unicode"

	capsulev1 "capsule/api/capsule/v1"
)

// pathPartMax bounds one name in a path, as ext4 does.
const pathPartMax = 255 // bytes

// What the capsule shows in a workload by itself.
var (
	systemFolders = []string{"/proc", "/sys", "/dev"}
	systemFiles   = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
)

// defaultMounts is Default for mounts.
func defaultMounts(mounts []*capsulev1.Mount) {
	for _, m := range mounts {
		if m == nil {
			continue
		}
		if m.CopyImageContent == nil {
			m.CopyImageContent = new(true)
		}
		if path.IsAbs(m.Path) && !climbs(m.Path) {
			m.Path = path.Clean(m.Path)
		}
	}
}

func (c *check) mounts(mounts []*capsulev1.Mount) {
	switch {
	case c.microVM && len(mounts) > vmMountsMax:
		c.add("mounts", "more than %d mounts: each is a disk of the microVM", vmMountsMax)
		return
	case len(mounts) > mountsMax:
		c.add("mounts", "more than %d mounts", mountsMax)
		return
	}
	for i, m := range mounts {
		at := index("mounts", i)
		c.mountVolume(at, m.GetVolume())
		if m.GetShared() && c.microVM {
			c.add(at+".shared", "%s: shared: a microVM has its own kernel, and one file system in two kernels is destroyed; only containers can share a volume", at)
		}
		if c.mountPath(at, m.GetPath()) {
			c.mountTwice(i, mounts)
		}
	}
}

// mountTwice compares mount i with those before it. One volume may be at several
// paths of a container; a microVM has it as a disk, which is mounted once.
func (c *check) mountTwice(i int, mounts []*capsulev1.Mount) {
	m, at := mounts[i], index("mounts", i)
	for j, other := range mounts[:i] {
		switch {
		case path.Clean(m.GetPath()) == path.Clean(other.GetPath()):
			c.add(at, "%s is at %q, where %s is already", at, clip(m.GetPath()), index("mounts", j))
			return
		case c.microVM && m.GetVolume() == other.GetVolume():
			c.add(at, "%s: volume %q is mounted by %s already: it is a disk of the microVM, which is mounted once", at, m.GetVolume(), index("mounts", j))
			return
		}
	}
}

func (c *check) mountVolume(at, name string) {
	switch p := nameProblem(name); {
	case strings.HasPrefix(name, "/") || strings.HasPrefix(name, "."):
		c.add(at+".volume", "%s: %q is no volume; a folder of the capsule can't be mounted", at, clip(name))
	case p != "":
		c.add(at+".volume", "%s: volume %s", at, p)
	}
}

// mountPath tells whether a volume can be mounted at p, as far as can be told
// without the image.
func (c *check) mountPath(at, p string) bool {
	clean := path.Clean(p)
	before := len(c.found)
	at += ".path"
	switch {
	case p == "":
		c.add(at, "%s is missing", at)
	case !path.IsAbs(p) || len(p) > pathMax || badText(p) != "":
		c.absolute(at, p)
	case climbs(p):
		c.add(at, "%s: path %q must have no \"..\"", at, clip(p))
	case strings.ContainsFunc(p, unicode.IsControl):
		c.add(at, "%s: path %q has a control character", at, clip(p))
	case slices.ContainsFunc(strings.Split(p, "/"), func(part string) bool { return len(part) > pathPartMax }):
		c.add(at, "%s: a name in the path is longer than %d bytes", at, pathPartMax)
	case clean == "/":
		c.add(at, "%s: a volume can't be mounted at \"/\", where the image is; want a folder such as \"/data\"", at)
	default:
		c.systemPath(at, clean)
	}
	return len(c.found) == before
}

// systemPath refuses to hide what the capsule shows.
func (c *check) systemPath(at, clean string) {
	for _, dir := range systemFolders {
		if clean == dir || strings.HasPrefix(clean, dir+"/") {
			c.add(at, "%s: %q can't be mounted over: %s is the kernel's", at, clip(clean), dir)
		}
	}
	for _, file := range systemFiles {
		if clean == file || strings.HasPrefix(clean, file+"/") || strings.HasPrefix(file, clean+"/") {
			c.add(at, "%s: %q can't be mounted over: %s is the capsule's", at, clip(clean), file)
			return
		}
	}
}

// climbs tells a path that has "..".
func climbs(p string) bool { return slices.Contains(strings.Split(p, "/"), "..") }
