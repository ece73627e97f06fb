package compose

import (
	"fmt"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/compose-spec/compose-go/v2/types"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// volume is one of ours, and who mounts it.
type volume struct {
	name   string
	object *capsulev1.Object // nil when it is made elsewhere
	mounts []*capsulev1.Mount
	users  map[string]bool
}

// volume gives that of a key, made at first.
func (c *converter) volume(key, text string) *volume {
	if v := c.volumes[key]; v != nil {
		return v
	}
	v := &volume{name: c.projectName("volume", text), users: map[string]bool{}}
	v.declare(c.src.VolumeSize)
	c.volumes[key] = v
	return v
}

func (v *volume) declare(size int64) {
	v.object = &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: manifest.KindVolume, Name: v.name},
		Kind: &capsulev1.Object_Volume{Volume: &capsulev1.Volume{Spec: &capsulev1.VolumeSpec{Size: size}}},
	}
}

// declaredVolume is one of the section "volumes".
func (c *converter) declaredVolume(key string) {
	v, path := c.model.project.Volumes[key], join("volumes", key)
	raw := mapping(mapping(c.model.raw["volumes"])[key])
	made := &volume{users: map[string]bool{}}
	named, _ := raw["name"].(string)
	switch {
	case named != "":
		made.name = unused(c.taken, "volume", named)
	case bool(v.External):
		made.name = unused(c.taken, "volume", key)
	default:
		made.name = c.projectName("volume", key)
	}
	c.volumes["volume "+key] = made
	if bool(v.External) {
		c.lose(join(path, "external"), "a volume %q is expected, and not declared: \"capsulectl volume create %s --size SIZE\" makes it, empty", made.name, made.name)
	} else {
		made.declare(c.src.VolumeSize)
	}
	for _, field := range sortedKeys(raw) {
		switch {
		case empty(raw[field]), strings.HasPrefix(field, "x-"), field == "name", field == "external", field == "driver" && raw[field] == "local":
		case field == "labels":
			c.lose(join(path, field), "nothing reads labels here; left out")
		case field == "driver_opts":
			c.lose(join(path, field), "a volume is on the capsule's own disk, and begins empty; left out: copy the data in with \"capsulectl cp\"")
		default:
			c.lose(join(path, field), "there is one kind of volume, on the capsule's own disk; left out")
		}
	}
}

// share lets containers that have a volume in common mount it at the same time.
func (c *converter) share() {
	made := 0
	for _, key := range sortedKeys(c.volumes) {
		v := c.volumes[key]
		for _, m := range v.mounts {
			m.Shared = len(v.users) > 1
		}
		if v.object != nil {
			made++
		}
	}
	if made > 0 {
		c.notes = append(c.notes, fmt.Sprintf("a Compose file has no sizes: each volume is made with %s, of which it takes what it holds; --volume-size says otherwise, and \"capsulectl volume resize\" makes one larger", manifest.FormatSize(c.src.VolumeSize)))
	}
}

func (s *service) mounts() {
	written := s.where.items(s.at("volumes"))
	for i, m := range s.config.Volumes {
		at := s.at("volumes")
		if written == len(s.config.Volumes) {
			at = fmt.Sprintf("%s[%d]", at, i)
		}
		switch m.Type {
		case types.VolumeTypeVolume:
			s.named(m, at)
		case types.VolumeTypeBind:
			s.bind(m, at)
		case types.VolumeTypeTmpfs:
			s.tmpfs(at, m.Target)
		default:
			s.lose(at, "%s: only volumes can be mounted; left out", m.Type)
		}
	}
	for i, target := range s.config.Tmpfs {
		target, _, _ = strings.Cut(target, ":")
		s.tmpfs(fmt.Sprintf("%s[%d]", s.at("tmpfs"), i), target)
	}
}

func (s *service) tmpfs(at, target string) {
	s.lose(at, "there is no file system in memory; what is written to %s is kept on disk until the instance is replaced", target)
}

// named mounts a volume of the file, or one that only this service has.
func (s *service) named(m types.ServiceVolumeConfig, at string) {
	v := s.volumes["volume "+m.Source]
	if m.Source == "" {
		v = s.volume("own "+s.config.Name+" "+m.Target, s.config.Name+"-"+path.Base(m.Target))
	}
	if v == nil {
		s.lose(at, "volume %q is not declared; left out", m.Source)
		return
	}
	mount := &capsulev1.Mount{Volume: v.name, Path: m.Target, ReadOnly: m.ReadOnly}
	if m.Volume != nil {
		if m.Volume.NoCopy {
			mount.CopyImageContent = new(false)
		}
		if m.Volume.Subpath != "" {
			s.lose(at, "a volume is mounted whole, and not its folder %q", m.Volume.Subpath)
		}
	}
	s.mount(v, mount, at)
}

func (s *service) mount(v *volume, mount *capsulev1.Mount, at string) bool {
	ok := s.try(s.spec, at, func(w *capsulev1.WorkloadSpec) { w.Mounts = append(w.Mounts, mount) })
	if ok {
		v.mounts = append(v.mounts, mount)
		v.users[s.config.Name] = true
	}
	return ok
}

// Folders of a machine that are its own, and never an operator's data.
var systemFolders = []string{"/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/tmp", "/usr", "/var", "/var/run", "/var/log", "/var/lib/docker"}

// bind stands for a file or folder of the machine: a small file comes along, a folder
// becomes a volume to be filled.
func (s *service) bind(m types.ServiceVolumeConfig, at string) {
	from := filepath.ToSlash(m.Source)
	switch {
	case from == "/etc/localtime" || from == "/etc/timezone":
		if s.model.env[s.config.Name]["TZ"] != "" {
			return // says the same
		}
		s.lose(at, "a workload's clock shows UTC, whatever the capsule's; left out: set TZ in its env, such as \"Europe/Berlin\"")
	case strings.HasSuffix(from, "/docker.sock"):
		s.lose(at, "there is no Docker to talk to; left out: what needs it does not work")
	case slices.Contains(systemFolders, from) || ownedBySystem(from):
		s.lose(at, "%s is the machine's own, and no workload sees the capsule's; left out", from)
	case isFile(m.Source):
		s.bindFile(m, at)
	case !exists(m.Source) && looksLikeFile(from):
		s.lose(at, "file %q is not here; left out: put it there and convert again", m.Source)
	default:
		s.bindFolder(m, at)
	}
}

func ownedBySystem(from string) bool {
	for _, dir := range []string{"/dev/", "/proc/", "/sys/", "/run/", "/var/run/", "/lib/", "/usr/lib/", "/boot/"} {
		if strings.HasPrefix(from, dir) {
			return true
		}
	}
	return false
}

// looksLikeFile tells a name that folders do not have.
func looksLikeFile(name string) bool {
	return slices.Contains([]string{
		".cert", ".cfg", ".cnf", ".conf", ".crt", ".env", ".html", ".ini", ".js", ".json", ".key", ".pem", ".php", ".py", ".sh", ".sql", ".toml", ".txt", ".xml", ".yaml", ".yml",
	}, strings.ToLower(path.Ext(name)))
}

// bindFile takes a small text along. Only what lies beside the Compose file is read:
// what is elsewhere is the other machine's, and not the one this runs on.
func (s *service) bindFile(m types.ServiceVolumeConfig, at string) {
	if rel, err := filepath.Rel(s.src.Dir, m.Source); err != nil || !filepath.IsLocal(rel) {
		s.lose(at, "file %q is not in the folder of the Compose file; left out: copy it there and name it so", m.Source)
		return
	}
	content, mode, why := small(m.Source)
	if why != "" {
		s.lose(at, "file %q %s; left out: copy it into a volume that is mounted there", m.Source, why)
		return
	}
	file := &capsulev1.File{Path: m.Target, Content: &content, Mode: mode}
	if s.try(s.spec, at, func(w *capsulev1.WorkloadSpec) { w.Files = append(w.Files, file) }) && !m.ReadOnly {
		s.lose(at, "file %q comes along as it is now, and the workload can't write to it", m.Source)
	}
}

// small reads a text that fits a manifest, or says why it does not.
func small(name string) (content, mode, why string) {
	data, err := readFile(name, fileMax)
	switch {
	case err != nil:
		return "", "", "can't be taken along (" + err.Error() + ")"
	case !utf8.Valid(data) || slices.Contains(data, 0):
		return "", "", "is no text"
	}
	if executable(name) {
		mode = "0555"
	}
	return string(data), mode, ""
}

// fileMax bounds a file that comes along, in bytes, as api/manifest does.
const fileMax = 64 << 10

func (s *service) bindFolder(m types.ServiceVolumeConfig, at string) {
	v := s.volume("folder "+m.Source, path.Base(filepath.ToSlash(m.Source)))
	mount := &capsulev1.Mount{Volume: v.name, Path: m.Target, ReadOnly: m.ReadOnly}
	if !s.mount(v, mount, at) {
		return
	}
	mount.CopyImageContent = new(false) // a folder hides what the image has
	how := "fill it"
	if m.ReadOnly {
		how = "leave readOnly out until it is filled"
	}
	s.lose(at, "no folder of a machine is mounted; the new volume %q is in its place, empty: %s with \"capsulectl cp %s/. %s:%s\"", v.name, how, m.Source, s.names[s.config.Name], m.Target)
}

func isFile(name string) bool {
	info, err := stat(name)
	return err == nil && info.Mode().IsRegular()
}

func exists(name string) bool { _, err := stat(name); return err == nil }

// executable tells a program or script, where files have such a mark.
func executable(name string) bool {
	info, err := stat(name)
	return err == nil && runtime.GOOS != "windows" && info.Mode()&0o111 != 0
}
