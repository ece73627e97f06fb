// Package compose turns a Compose file into manifests. It reads the file and what lies
// beside it (.env, files of variables, files that are mounted), never the network and
// no Docker, and talks to no capsule.
//
// Nothing of a file is dropped unseen: every field of a service, volume or network that
// is set is either carried over or is a Loss, which says what happens instead and what
// can be done. Objects that come out are valid by the rules of api/manifest.
package compose

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// Limits of what is read.
const (
	// MaxBytes bounds a Compose file, and each file of variables, in bytes.
	MaxBytes = 1 << 20
	// portsMax bounds the ports in all ranges of a file: a range is spread port by port
	// while it is read.
	portsMax = 70_000
)

// VolumeSizeDefault is how large a volume is made, in bytes: a Compose file has no size.
// It takes space of the pool only as it fills, and can grow.
const VolumeSizeDefault = 10 << 30

// Source is a Compose file and what its text refers to.
type Source struct {
	// Name of the file for messages.
	Name string
	// Dir is the folder that relative paths start from. Files that are mounted are read
	// in it only.
	Dir string
	// Data is the text of the file, at most MaxBytes.
	Data []byte
	// Env are variables for ${NAME}. They win over those of Dir/.env.
	Env map[string]string
	// Profiles are those whose services are converted; "*" is all.
	Profiles []string
	// Project is put before the names of volumes and secrets, as Docker does; "" takes
	// the file's name field, else the folder's name.
	Project string
	// Prefix is put before the names of workloads.
	Prefix string
	// VolumeSize in bytes; 0 is VolumeSizeDefault.
	VolumeSize int64
}

// Loss is what a manifest does not say, or says otherwise.
type Loss struct {
	// Line of the file, from 1; 0 when it stands in another file.
	Line int
	// Path of the field, such as "services.web.ports[0]".
	Path string
	// Message is what happens instead, and what can be done.
	Message string
}

// Result is what comes of a Compose file.
type Result struct {
	// Objects in the order that a reader wants them: secrets, volumes, workloads.
	Objects []*capsulev1.Object
	// Losses in the order of the file.
	Losses []Loss
	// Notes are choices made where a Compose file says nothing.
	Notes []string
}

// Convert reads a Compose file. The error is of a file that can't be read as one, or
// that asks for what no manifest can say.
func Convert(ctx context.Context, src Source) (*Result, error) {
	if len(src.Data) > MaxBytes {
		return nil, fmt.Errorf("read %q: larger than %s, so it is no Compose file", src.Name, manifest.FormatSize(MaxBytes))
	}
	if src.VolumeSize == 0 {
		src.VolumeSize = VolumeSizeDefault
	}
	if line := circle(src.Data); line != 0 {
		return nil, fmt.Errorf("read %q: line %d: an alias leads back to what it stands in", src.Name, line)
	}
	where := newPlaces(src.Data)
	if n := where.portsInRanges(); n > portsMax {
		return nil, fmt.Errorf("read %q: its ranges hold %d ports, at most %d are taken", src.Name, n, portsMax)
	}
	m, err := load(ctx, src)
	if err != nil {
		return nil, err
	}
	if n := len(m.project.Services); n > manifest.MaxObjects {
		return nil, fmt.Errorf("read %q: it has %d services, at most %d are taken", src.Name, n, manifest.MaxObjects)
	}
	c := &converter{src: src, model: m, where: where, names: map[string]string{}, volumes: map[string]*volume{}, secrets: map[string]*capsulev1.Object{}, taken: map[string]bool{}}
	c.convert()
	return c.result()
}

// converter is one run.
type converter struct {
	src   Source
	model *model
	where *places
	// names of workloads by service.
	names map[string]string
	// volumes by where their data was: "volume NAME", "folder PATH" or "own SERVICE PATH".
	volumes map[string]*volume
	secrets map[string]*capsulev1.Object
	// taken names of volumes and secrets, by "volume NAME" and "secret NAME".
	taken     map[string]bool
	workloads []*capsulev1.Object
	losses    []Loss
	notes     []string
}

func (c *converter) lose(path, format string, args ...any) {
	c.losses = append(c.losses, Loss{Line: c.where.line(path), Path: path, Message: fmt.Sprintf(format, args...)})
}

func (c *converter) convert() {
	c.unset()
	c.topLevel()
	c.nameServices()
	for _, name := range sortedKeys(c.model.project.Volumes) {
		c.declaredVolume(name)
	}
	for _, name := range c.serviceNames() {
		c.service(name)
	}
	c.disabled()
	c.networks()
	c.share()
	c.renamed()
}

// serviceNames are those of the services that are converted, sorted.
func (c *converter) serviceNames() []string { return sortedKeys(c.model.project.Services) }

// unset tells of variables that have neither a value nor a default.
func (c *converter) unset() {
	for _, name := range c.model.unset {
		path, line := c.where.variable(name)
		c.losses = append(c.losses, Loss{line, path, fmt.Sprintf("variable %q is not set: nothing stands in its place; set it in %s and convert again", name, filepath.Join(c.src.Dir, ".env"))})
	}
}

// topLevel tells of whole sections that are not known here.
func (c *converter) topLevel() {
	for _, key := range sortedKeys(c.model.raw) {
		switch key {
		case "services", "volumes", "networks", "secrets", "configs", "name", "version", "include":
		default:
			if !strings.HasPrefix(key, "x-") && !empty(c.model.raw[key]) {
				c.lose(key, "has no equivalent; left out")
			}
		}
	}
}

func (c *converter) disabled() {
	for _, name := range sortedKeys(c.model.project.DisabledServices) {
		s := c.model.project.DisabledServices[name]
		c.lose(join("services", name), "is of the profile %s, which was not asked for; left out; --profile %s has it", strings.Join(s.Profiles, ", "), first(s.Profiles))
	}
}

// result checks that what came out can be applied as it is.
func (c *converter) result() (*Result, error) {
	r := &Result{Losses: c.losses, Notes: c.notes}
	for _, name := range sortedKeys(c.secrets) {
		r.Objects = append(r.Objects, c.secrets[name])
	}
	for _, key := range sortedKeys(c.volumes) {
		if v := c.volumes[key]; v.object != nil {
			r.Objects = append(r.Objects, v.object)
		}
	}
	r.Objects = append(r.Objects, c.workloads...)
	slices.SortStableFunc(r.Losses, func(a, b Loss) int { return a.Line - b.Line })
	if len(c.workloads) == 0 {
		return nil, fmt.Errorf("read %q: it has no service to convert", c.src.Name)
	}
	text, err := r.Manifest()
	if err != nil {
		return nil, err
	}
	if _, err := manifest.Decode("the manifest of "+c.src.Name, bytes.NewReader(text)); err != nil {
		return nil, err
	}
	return r, nil
}

// Manifest is the text of all objects.
func (r *Result) Manifest() ([]byte, error) {
	var out bytes.Buffer
	for i, o := range r.Objects {
		if i > 0 {
			out.WriteString("---\n")
		}
		text, err := manifest.Encode(o)
		if err != nil {
			return nil, err
		}
		out.Write(text)
	}
	return out.Bytes(), nil
}

// try sets fields of a workload, unless no manifest may say so: then that is a loss.
func (c *converter) try(spec *capsulev1.WorkloadSpec, path string, set func(*capsulev1.WorkloadSpec)) bool {
	alone := &capsulev1.WorkloadSpec{Image: "x", Network: spec.GetNetwork(), Restart: spec.GetRestart()}
	set(alone)
	err := manifest.Validate(&capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: manifest.KindContainer, Name: "x"},
		Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Spec: alone}},
	})
	if err != nil {
		text, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), `Container "x": `), "\n")
		c.lose(path, "%s; left out", text)
		return false
	}
	set(spec)
	return true
}

// service converts one.
func (c *converter) service(name string) {
	s := &service{converter: c, config: c.model.project.Services[name], raw: mapping(c.model.raw["services"])[name], path: join("services", name), spec: &capsulev1.WorkloadSpec{}}
	if s.raw == nil {
		s.raw = map[string]any{}
	}
	s.convert()
	if s.left {
		return
	}
	c.workloads = append(c.workloads, &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: manifest.KindContainer, Name: c.names[name]},
		Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Spec: s.spec}},
	})
}

// service is one while it is converted.
type service struct {
	*converter
	config types.ServiceConfig
	raw    any // as the file has it
	path   string
	spec   *capsulev1.WorkloadSpec
	left   bool // out
}

// at is the path of a field of the service.
func (s *service) at(field string) string { return join(s.path, field) }

// has tells whether the file sets a field to anything.
func (s *service) has(field string) bool { return !empty(mapping(s.raw)[field]) }
