package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"

	"capsule/api/manifest"
)

// model is a Compose file as it was read.
type model struct {
	// raw is what the file says, in the long form of each field, with nothing added.
	raw     map[string]any
	project *types.Project
	// env of each service: its files of variables, then its own.
	env map[string]map[string]string
	// unset variables that have no default.
	unset []string
	// absent variables by service, that are to be taken from where there is none.
	absent map[string][]string
	// secretNames of ours, by those of the file.
	secretNames map[string]string
}

// plainVariable is $NAME or ${NAME}; "$$" is a dollar.
var plainVariable = regexp.MustCompile(`\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))`)

func load(ctx context.Context, src Source) (m *model, err error) {
	defer func() {
		// The library takes shapes for granted that its schema does not check.
		if p := recover(); p != nil {
			m, err = nil, fmt.Errorf("read %q: it is no Compose file (%v)", src.Name, p)
		}
	}()
	env, err := environment(src)
	if err != nil {
		return nil, err
	}
	m = &model{env: map[string]map[string]string{}, absent: map[string][]string{}, secretNames: map[string]string{}}
	details := types.ConfigDetails{
		WorkingDir: src.Dir, Environment: env,
		ConfigFiles: []types.ConfigFile{{Filename: src.Name, Content: src.Data}},
	}
	if m.raw, err = loader.LoadModelWithContext(ctx, details, m.options(src)); err != nil {
		return nil, readError(src, err)
	}
	slices.Sort(m.unset)
	m.unset = slices.Compact(m.unset)
	return m, m.bind(src, details)
}

// options read the file as it is written: what Docker would add is added to a copy.
func (m *model) options(src Source) func(*loader.Options) {
	return func(o *loader.Options) {
		name := loader.NormalizeProjectName(src.Project)
		if name == "" {
			name = loader.NormalizeProjectName(filepath.Base(src.Dir))
		}
		if name == "" {
			name = "compose"
		}
		o.SetProjectName(name, src.Project != "")
		o.SkipNormalization, o.SkipResolveEnvironment, o.SkipResolveLabels = true, true, true
		o.Profiles = src.Profiles
		o.ResourceLoaders = []loader.ResourceLoader{unfit{src.Dir}}
		lookup := o.Interpolate.LookupValue
		o.Interpolate.Substitute = func(text string, mapping template.Mapping) (string, error) {
			for _, found := range plainVariable.FindAllStringSubmatch(text, -1) {
				if name := found[1] + found[2]; name != "" {
					if _, ok := lookup(name); !ok {
						m.unset = append(m.unset, name)
					}
				}
			}
			return template.SubstituteWithOptions(text, mapping, template.WithoutLogging)
		}
	}
}

// bind makes the project of a copy of what was read, with all that Docker adds.
func (m *model) bind(src Source, details types.ConfigDetails) error {
	name := details.Environment["COMPOSE_PROJECT_NAME"]
	whole := clone(m.raw).(map[string]any)
	whole["name"] = name
	whole, err := loader.Normalize(whole, details.Environment)
	if err != nil {
		return readError(src, err)
	}
	named := func(o *loader.Options) { o.SetProjectName(name, true) }
	m.project, err = loader.ModelToProject(whole, loader.ToOptions(&details, []func(*loader.Options){m.options(src), named}), details)
	if err != nil {
		return readError(src, err)
	}
	for _, service := range sortedKeys(m.project.Services) {
		if err := m.variables(service, details.Environment); err != nil {
			return readError(src, err)
		}
	}
	return nil
}

// variables gives a service its environment: a later file wins, and the service's own
// over all.
func (m *model) variables(service string, env map[string]string) error {
	s := m.project.Services[service]
	all := map[string]string{}
	for _, file := range s.EnvFiles {
		data, err := readFile(file.Path, MaxBytes)
		if errors.Is(err, fs.ErrNotExist) && !bool(file.Required) {
			continue
		}
		if err != nil {
			return fmt.Errorf("services.%s.env_file: %w", service, err)
		}
		values, err := parseVariables(data, file.Format, func(name string) (string, bool) {
			if v := s.Environment[name]; v != nil {
				return *v, true
			}
			v, ok := env[name]
			return v, ok
		})
		if err != nil {
			return fmt.Errorf("services.%s.env_file: %s: %w", service, file.Path, err)
		}
		for name, value := range values {
			all[name] = value
		}
	}
	for name, value := range s.Environment {
		if value != nil {
			all[name] = *value
		} else if _, ok := all[name]; !ok {
			m.absent[service] = append(m.absent[service], name)
		}
	}
	slices.Sort(m.absent[service])
	m.env[service] = all
	return nil
}

// parseVariables reads a file of variables; the format "raw" takes each line as it is.
func parseVariables(data []byte, format string, lookup dotenv.LookupFn) (map[string]string, error) {
	if format == "" {
		return dotenv.UnmarshalBytesWithLookup(data, lookup)
	}
	values := map[string]string{}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), "=")
		if name = strings.TrimSpace(name); name != "" && !strings.HasPrefix(name, "#") {
			values[name] = value
		}
	}
	return values, nil
}

// environment is what ${NAME} is looked up in: .env, and what wins over it.
func environment(src Source) (map[string]string, error) {
	env := map[string]string{}
	for name, value := range src.Env {
		env[name] = value
	}
	file := filepath.Join(src.Dir, ".env")
	data, err := readFile(file, MaxBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return env, nil
	}
	if err != nil {
		return nil, err
	}
	own, err := dotenv.UnmarshalBytesWithLookup(data, func(name string) (string, bool) { v, ok := src.Env[name]; return v, ok })
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", file, err)
	}
	for name, value := range own {
		if _, ok := env[name]; !ok {
			env[name] = value
		}
	}
	return env, nil
}

// readError is what the library says, without its "failed to".
func readError(src Source, err error) error {
	text := strings.TrimPrefix(err.Error(), "failed to parse "+src.Name+": ")
	text = strings.TrimPrefix(text, "validating "+src.Name+": ")
	return fmt.Errorf("read %q: %s", src.Name, strings.ReplaceAll(text, "\n", "; "))
}

// readFile reads a regular file that is not larger than it may be, in bytes.
func readFile(name string, most int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fileError(name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %q: it is no file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fileError(name, err)
	}
	defer f.Close()
	var data bytes.Buffer
	if _, err := io.Copy(&data, io.LimitReader(f, most+1)); err != nil {
		return nil, fileError(name, err)
	}
	if int64(data.Len()) > most {
		return nil, fmt.Errorf("read %q: %w %s", name, errTooLarge, manifest.FormatSize(most))
	}
	return data.Bytes(), nil
}

var errTooLarge = errors.New("it is larger than")

func fileError(name string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return fmt.Errorf("read %q: %w", name, err)
}

// unfit takes the files of "include" and "extends" that the library must not read: it
// has no bound of its own.
type unfit struct{ dir string }

func (u unfit) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(u.dir, name)
}

// Accept tells a file that is there, and no file or too large.
func (u unfit) Accept(name string) bool {
	info, err := os.Stat(u.path(name))
	return err == nil && !info.IsDir() && (!info.Mode().IsRegular() || info.Size() > MaxBytes)
}

// Load refuses it.
func (u unfit) Load(_ context.Context, name string) (string, error) {
	return "", fmt.Errorf("%q is no file of at most %s", name, manifest.FormatSize(MaxBytes))
}

// Dir is never asked for.
func (u unfit) Dir(name string) string { return filepath.Dir(name) }

// mapping is a value as a mapping; nil when it is none.
func mapping(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

// clone copies a value of YAML in full.
func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for key, value := range v {
			m[key] = clone(value)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i, value := range v {
			list[i] = clone(value)
		}
		return list
	}
	return v
}

// empty tells a value that says nothing: as if the field were not there.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == ""
	case int:
		return v == 0
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return false
}
