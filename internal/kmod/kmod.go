// Package kmod loads kernel modules without modprobe or udev: by name, and by
// the modalias that a device announces. It reads the text indexes that depmod
// writes beside the modules (modules.dep, modules.alias, modules.softdep) and
// never writes anything.
package kmod

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// initCompressed tells finit_module that the file is still compressed
// (MODULE_INIT_COMPRESSED_FILE of linux/module.h).
const initCompressed = 4

// A Set is the modules of one kernel with their relations.
type Set struct {
	root    string
	deps    map[string]module
	aliases func() *aliasIndex // read on first need: it's large
	softPre map[string][]string
	softPst map[string][]string

	mu     sync.Mutex
	loaded map[string]bool

	params map[string]string // by module, from the kernel's command line
	insert func(file, params string) error
}

// A module is a line of modules.dep: its file and the files it needs, the one to
// load first standing last.
type module struct {
	file  string
	needs []string
}

// Open reads the indexes of the running kernel under root (normally "/").
func Open(root string) (*Set, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("ask the kernel its release: %w", err)
	}
	dir := filepath.Join(root, "lib/modules", unix.ByteSliceToString(uts.Release[:]))
	s, err := parse(os.DirFS(dir))
	if err != nil {
		return nil, fmt.Errorf("read module index %q: %w", dir, err)
	}
	s.root = dir
	s.insert = insertFile
	if line, err := os.ReadFile("/proc/cmdline"); err == nil {
		s.params = parameters(string(line))
	}
	s.noteLoaded("/proc/modules")
	return s, nil
}

func parse(dir fs.FS) (*Set, error) {
	s := &Set{
		deps:    map[string]module{},
		softPre: map[string][]string{},
		softPst: map[string][]string{},
		loaded:  map[string]bool{},
	}
	dep, err := fs.ReadFile(dir, "modules.dep")
	if err != nil {
		return nil, err
	}
	s.parseDep(dep)
	s.aliases = sync.OnceValue(func() *aliasIndex {
		x := &aliasIndex{}
		if b, err := fs.ReadFile(dir, "modules.alias"); err == nil {
			x.parse(b)
		}
		return x
	})
	if b, err := fs.ReadFile(dir, "modules.softdep"); err == nil {
		s.parseSoftdep(b)
	}
	if b, err := fs.ReadFile(dir, "modules.builtin"); err == nil {
		for line := range lines(b) {
			s.loaded[nameOf(line)] = true
		}
	}
	return s, nil
}

// nameOf is the module name of a file: without folder and suffix, "-" as "_".
func nameOf(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func (s *Set) parseDep(b []byte) {
	for line := range lines(b) {
		file, needs, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		s.deps[nameOf(file)] = module{file: file, needs: strings.Fields(needs)}
	}
}

// parseSoftdep reads lines such as "softdep libcrc32c pre: crc32c post: x".
func (s *Set) parseSoftdep(b []byte) {
	for line := range lines(b) {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != "softdep" {
			continue
		}
		name, into := nameOf(f[1]), map[string][]string(nil)
		for _, word := range f[2:] {
			switch word {
			case "pre:":
				into = s.softPre
			case "post:":
				into = s.softPst
			default:
				if into != nil {
					into[name] = append(into[name], word)
				}
			}
		}
	}
}

func lines(b []byte) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		sc := bufio.NewScanner(bytes.NewReader(b))
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			line := strings.TrimSpace(sc.Text())
			if line != "" && line[0] != '#' && !yield(line) {
				return
			}
		}
	}
}

func (s *Set) noteLoaded(procModules string) {
	b, err := os.ReadFile(procModules)
	if err != nil {
		return
	}
	for line := range lines(b) {
		name, _, _ := strings.Cut(line, " ")
		s.loaded[name] = true
	}
}

// Resolve gives the modules that a module name or an alias stands for.
func (s *Set) Resolve(nameOrAlias string) []string {
	name := nameOf(nameOrAlias)
	if _, ok := s.deps[name]; ok || s.loaded[name] {
		return []string{name}
	}
	return s.aliases().match(nameOrAlias)
}

// Load loads each module or alias with what it needs. Already loaded and built-in
// modules are fine; a name that nothing answers to is an error.
func (s *Set) Load(names ...string) error {
	if s == nil { // Open failed, and said why
		return fmt.Errorf("load modules %q: there's no module index", names)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, name := range names {
		found := s.Resolve(name)
		if len(found) == 0 {
			errs = append(errs, fmt.Errorf("load module %q: no such module", name))
		}
		for _, m := range found {
			errs = append(errs, s.load(m))
		}
	}
	return errors.Join(errs...)
}

// LoadAlias loads whatever drives the device with this modalias and reports how
// many modules matched. Drivers that refuse the device are not an error.
func (s *Set) LoadAlias(modalias string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.aliases().match(modalias)
	for _, m := range found {
		_ = s.load(m)
	}
	return len(found)
}

func (s *Set) load(name string) error {
	for _, step := range s.order(name) {
		if s.loaded[step.name] {
			continue
		}
		file := filepath.Join(s.root, step.file)
		err := s.insert(file, s.params[step.name])
		if errors.Is(err, unix.EINVAL) && s.params[step.name] != "" { // better as it comes than not at all
			err = s.insert(file, "")
		}
		if err == nil || errors.Is(err, unix.EEXIST) {
			s.loaded[step.name] = true
			continue
		}
		if !step.optional {
			return fmt.Errorf("load module %q: %w", step.name, err)
		}
	}
	return nil
}

// A step is one module to load; an optional one may fail.
type step struct {
	name, file string
	optional   bool
}

// order lists what to load for a module, first things first: for it and each of
// its dependencies the soft ones come before.
func (s *Set) order(name string) []step {
	var out []step
	seen := map[string]bool{}
	var visit func(name string, optional bool)
	visit = func(name string, optional bool) {
		if seen[name] || s.loaded[name] {
			return
		}
		seen[name] = true
		m, ok := s.deps[name]
		if !ok {
			return
		}
		for _, soft := range s.softPre[name] {
			for _, r := range s.Resolve(soft) {
				visit(r, true)
			}
		}
		for _, need := range slices.Backward(m.needs) {
			visit(nameOf(need), optional)
		}
		out = append(out, step{name: name, file: m.file, optional: optional})
		for _, soft := range s.softPst[name] {
			for _, r := range s.Resolve(soft) {
				visit(r, true)
			}
		}
	}
	visit(name, false)
	return out
}

// parameters are those that a command line has for modules, "usbcore.quirks=…": the
// kernel takes its own from there, and leaves those of modules to who loads them.
func parameters(cmdline string) map[string]string {
	all := map[string]string{}
	for _, word := range strings.Fields(cmdline) {
		module, param, found := strings.Cut(word, ".")
		if !found || strings.ContainsAny(module, "=/") {
			continue
		}
		module = strings.ReplaceAll(module, "-", "_")
		all[module] = strings.TrimSpace(all[module] + " " + param)
	}
	return all
}

func insertFile(file, params string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(file, ".ko") {
		flags = initCompressed
	}
	return unix.FinitModule(int(f.Fd()), params, flags)
}
