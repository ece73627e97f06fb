package manifest

import (
	"encoding/base64"
	"path"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	capsulev1 "capsule/api/capsule/v1"
)

// Limits of what a Secret may hold, and of files that are shown in a workload.
const (
	secretValueMax = 64 << 10  // bytes of a value
	secretBytesMax = 192 << 10 // bytes of all values of a Secret
	secretKeysMax  = 100
	secretKeyMax   = 128 // bytes of a key
	filesMax       = 64  // of one workload
	fileBytesMax   = 64 << 10
	// FilesBytesMax bounds what the files of a workload hold together, in bytes.
	FilesBytesMax = 192 << 10
)

// Hidden is what a capsule shows in the place of a value of a Secret.
const Hidden = "(hidden)"

// What WorkloadSpec.on_secret_change may be.
const (
	OnSecretChangeRestart = "restart"
	OnSecretChangeNone    = "none"
)

// Permissions of a file that has none.
const (
	defaultContentMode = "0444"
	defaultSecretMode  = "0400"
)

var (
	onSecretChanges = []string{OnSecretChangeRestart, OnSecretChangeNone}
	secretKey       = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
	fileMode        = regexp.MustCompile(`^0?[0-7]{3}$`)
)

// defaultSecrets is Default for files and what a workload uses of secrets.
func defaultSecrets(s *capsulev1.WorkloadSpec) {
	uses := len(s.GetSecretEnv()) > 0
	for _, f := range s.GetFiles() {
		if f == nil {
			continue
		}
		uses = uses || f.Secret != ""
		if path.IsAbs(f.Path) && !climbs(f.Path) {
			f.Path = path.Clean(f.Path)
		}
		switch {
		case f.Mode != "":
			f.Mode = "0" + strings.TrimPrefix(f.Mode, "0")
		case f.Secret != "":
			f.Mode = defaultSecretMode
		default:
			f.Mode = defaultContentMode
		}
	}
	if !uses || s.OnSecretChange != "" {
		return
	}
	s.OnSecretChange = OnSecretChangeRestart
	if s.GetRestart() == restartNever {
		s.OnSecretChange = OnSecretChangeNone
	}
}

// Mode gives the permissions of a file, as chmod takes them; 0 when they are not
// valid.
func Mode(f *capsulev1.File) uint32 {
	mode, err := strconv.ParseUint(f.GetMode(), 8, 32)
	if err != nil || !fileMode.MatchString(f.GetMode()) {
		return 0
	}
	return uint32(mode)
}

// secret checks a Secret. What it says never holds a value.
func (c *check) secret(s *capsulev1.SecretSpec) {
	if len(s.GetData())+len(s.GetBinaryData()) == 0 {
		c.add("data", "data is missing; want KEY: value pairs")
	}
	if len(s.GetData())+len(s.GetBinaryData()) > secretKeysMax {
		c.add("data", "data and binaryData have more than %d keys", secretKeysMax)
		return
	}
	total := 0
	for _, key := range sortedKeys(s.GetData()) {
		value := s.GetData()[key]
		total += len(value)
		c.secretValue("data", key, len(value))
		if value == Hidden {
			c.add("data."+key, "data.%s: %s is what a capsule shows in the place of a value; give the value", clip(key), Hidden)
		}
	}
	for _, key := range sortedKeys(s.GetBinaryData()) {
		total += len(s.GetBinaryData()[key])
		c.secretValue("binaryData", key, len(s.GetBinaryData()[key]))
		if _, twice := s.GetData()[key]; twice {
			c.add("binaryData."+key, "binaryData.%s: data has that key already", clip(key))
		}
	}
	if total > secretBytesMax {
		c.add("data", "the values hold %d bytes together, at most %s are kept", total, FormatSize(secretBytesMax))
	}
}

func (c *check) secretValue(field, key string, size int) {
	at := field + "." + key
	if key == "" || len(key) > secretKeyMax || !secretKey.MatchString(key) {
		c.add(at, "%s: key %q must have 1 to %d letters, digits, \".\", \"_\" or \"-\"", field, clip(key), secretKeyMax)
	}
	if size > secretValueMax {
		c.add(at, "%s.%s: the value is longer than %s", field, clip(key), FormatSize(secretValueMax))
	}
}

// secretRef checks what names a value of a Secret.
func (c *check) secretRef(at, ref string) {
	name, key, ok := strings.Cut(ref, "/")
	switch p := nameProblem(name); {
	case !ok || key == "":
		c.add(at, "%s: %q names no value of a secret; want \"SECRET/KEY\"", at, clip(ref))
	case p != "":
		c.add(at, "%s: secret %s", at, p)
	case len(key) > secretKeyMax || !secretKey.MatchString(key):
		c.add(at, "%s: key %q must have 1 to %d letters, digits, \".\", \"_\" or \"-\"", at, clip(key), secretKeyMax)
	}
}

// secrets checks what a workload uses of secrets, and its files.
func (c *check) secrets(s *capsulev1.WorkloadSpec) {
	c.variables("secretEnv", s.GetSecretEnv(), envMax-len(s.GetEnv()))
	for _, name := range sortedKeys(s.GetSecretEnv()) {
		at := "secretEnv." + name
		c.secretRef(at, s.GetSecretEnv()[name])
		if _, twice := s.GetEnv()[name]; twice {
			c.add(at, "%s: env has %q too", at, clip(name))
		}
	}
	c.files(s)
	switch p := s.GetOnSecretChange(); {
	case p == "", p == OnSecretChangeNone:
	case p != OnSecretChangeRestart:
		c.add("onSecretChange", "unknown onSecretChange %q; %s", clip(p), suggest(p, onSecretChanges))
	case s.GetRestart() == restartNever:
		c.add("onSecretChange", "onSecretChange %q: restart is \"never\"; want onSecretChange none, or restart always or on-failure", p)
	}
}

func (c *check) files(s *capsulev1.WorkloadSpec) {
	if len(s.GetFiles()) > filesMax {
		c.add("files", "more than %d files; a volume has room for more", filesMax)
		return
	}
	total := 0
	for i, f := range s.GetFiles() {
		at := index("files", i)
		total += len(f.GetContent())
		switch {
		case f.GetSecret() != "" && f.Content != nil:
			c.add(at, "%s has content and secret; want one of them", at)
		case f.GetSecret() != "":
			c.secretRef(at+".secret", f.GetSecret())
		case f.Content == nil:
			c.found = append(c.found, problem{at, at + " has neither content nor secret", true})
		case len(f.GetContent()) > fileBytesMax:
			c.add(at+".content", "%s.content is longer than %s; a volume has room for more", at, FormatSize(fileBytesMax))
		}
		if f.GetMode() != "" && Mode(f) == 0 {
			c.add(at+".mode", "%s.mode: %q are no permissions; want three octal digits such as \"0444\"", at, clip(f.GetMode()))
		}
		if f.GetOwner() != "" && !isAccount(f.GetOwner()) {
			c.add(at+".owner", "%s.owner %q: want \"user\", \"uid\", \"user:group\" or \"uid:gid\"", at, clip(f.GetOwner()))
		}
		if p := f.GetPath(); strings.HasSuffix(p, "/") {
			c.add(at+".path", "%s: path %q is that of a folder; want a file such as \"/etc/app.conf\"", at, clip(p))
		} else if c.mountPath(at, p) {
			c.fileTwice(i, s)
		}
	}
	if total > FilesBytesMax {
		c.add("files", "files hold %d bytes together, at most %s can be shown; a volume has room for more", total, FormatSize(FilesBytesMax))
	}
}

// fileTwice compares file i with those before it and with mounts: nothing can be below
// a file.
func (c *check) fileTwice(i int, s *capsulev1.WorkloadSpec) {
	at, name := index("files", i), path.Clean(s.GetFiles()[i].GetPath())
	for j, other := range s.GetFiles()[:i] {
		if p := path.Clean(other.GetPath()); p == name || strings.HasPrefix(name, p+"/") || strings.HasPrefix(p, name+"/") {
			c.add(at, "%s is at %q, and %s at %q", at, clip(name), index("files", j), clip(p))
			return
		}
	}
	for j, m := range s.GetMounts() {
		if p := path.Clean(m.GetPath()); p == name || strings.HasPrefix(p, name+"/") {
			c.add(at, "%s is at %q, and the folder of %s at %q", at, clip(name), index("mounts", j), clip(p))
			return
		}
	}
}

// isBytes tells a map whose values are bytes, which a manifest has in base64.
func isBytes(f protoreflect.FieldDescriptor) bool {
	return f.IsMap() && f.MapValue().Kind() == protoreflect.BytesKind
}

// parseBytes reads base64, in lines or not. The error does not quote it.
func parseBytes(text string) ([]byte, error) {
	text = strings.Join(strings.Fields(text), "")
	value, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, invalid("it is no base64")
	}
	return value, nil
}
