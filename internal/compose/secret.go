package compose

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/compose-spec/compose-go/v2/types"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// secretKey names the one value of a Secret that comes of a Compose file.
const secretKey = "value"

// secretMode is Compose's, so that programs that change their user read it as there.
const secretMode = "0444"

func stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

// shownFiles maps configs and secrets to files.
func (s *service) shownFiles() {
	for i, use := range s.config.Configs {
		s.configFile(types.FileReferenceConfig(use), fmt.Sprintf("%s[%d]", s.at("configs"), i))
	}
	for i, use := range s.config.Secrets {
		s.secretFile(types.FileReferenceConfig(use), fmt.Sprintf("%s[%d]", s.at("secrets"), i))
	}
}

// file is what configs and secrets have in common: where they are shown, and whose.
func file(use types.FileReferenceConfig, dir, mode string) *capsulev1.File {
	f := &capsulev1.File{Path: use.Target, Mode: mode}
	if f.Path == "" {
		f.Path = use.Source
	}
	if !path.IsAbs(f.Path) {
		f.Path = path.Join(dir, f.Path)
	}
	if use.Mode != nil {
		f.Mode = fmt.Sprintf("%04o", int64(*use.Mode))
	}
	switch {
	case use.UID != "" && use.GID != "":
		f.Owner = use.UID + ":" + use.GID
	case use.UID != "":
		f.Owner = use.UID
	case use.GID != "":
		f.Owner = "0:" + use.GID
	}
	return f
}

func (s *service) configFile(use types.FileReferenceConfig, at string) {
	config := s.model.project.Configs[use.Source]
	f := file(use, "/", "")
	content, why := config.Content, ""
	switch {
	case bool(config.External):
		why = "is kept by Docker, and not in a file; left out: write it into files of the manifest"
	case config.File != "":
		if content, f.Mode, why = smallOr(config.File, f.Mode); why != "" {
			why = fmt.Sprintf("file %q %s; left out: copy it into a volume", config.File, why)
		}
	case config.Environment != "" && content == "":
		why = fmt.Sprintf("variable %q is not set; left out", config.Environment)
	}
	if why != "" {
		s.lose(at, "%s", why)
		return
	}
	f.Content = &content
	s.try(s.spec, at, func(w *capsulev1.WorkloadSpec) { w.Files = append(w.Files, f) })
}

// smallOr is small, with a mode that was given.
func smallOr(name, mode string) (content, has, why string) {
	content, has, why = small(name)
	if mode != "" {
		has = mode
	}
	return content, has, why
}

func (s *service) secretFile(use types.FileReferenceConfig, at string) {
	name := s.secret(use.Source)
	f := file(use, "/run/secrets", secretMode)
	f.Secret = name + "/" + secretKey
	s.try(s.spec, at, func(w *capsulev1.WorkloadSpec) { w.Files = append(w.Files, f) })
}

// secret gives the name of ours for one of the file, which is made at first. One whose
// value is not here is named all the same: the capsule waits for it.
func (c *converter) secret(source string) string {
	key := "secret " + source
	if o := c.secrets[key]; o != nil {
		return o.GetMeta().GetName()
	}
	name, asked := c.model.secretNames[source]
	if asked {
		return name
	}
	name = c.projectName("secret", source)
	c.model.secretNames[source] = name
	value, why := c.secretValue(source)
	if why != "" {
		c.lose(join("secrets", source), "%s; the workload waits for a Secret %q with the key %q: declare one", why, name, secretKey)
		return name
	}
	spec := &capsulev1.SecretSpec{}
	if utf8.Valid(value) {
		spec.Data = map[string]string{secretKey: string(value)}
	} else {
		spec.BinaryData = map[string][]byte{secretKey: value}
	}
	c.secrets[key] = &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: manifest.KindSecret, Name: name},
		Kind: &capsulev1.Object_Secret{Secret: &capsulev1.Secret{Spec: spec}},
	}
	return name
}

// secretValue reads a value, or says why it can't be had.
func (c *converter) secretValue(source string) (value []byte, why string) {
	s := c.model.project.Secrets[source]
	switch {
	case bool(s.External):
		return nil, "is kept by Docker, which does not give it out"
	case s.Environment != "":
		text, ok := c.model.project.Environment[s.Environment]
		if !ok {
			return nil, fmt.Sprintf("variable %q is not set", s.Environment)
		}
		value = []byte(text)
	case s.File != "":
		data, err := readFile(s.File, fileMax)
		if err != nil {
			return nil, strings.TrimPrefix(err.Error(), "read ")
		}
		value = data
	default:
		value = []byte(s.Content)
	}
	if string(value) == manifest.Hidden || len(value) > fileMax {
		return nil, "its value can't be kept"
	}
	return value, ""
}
