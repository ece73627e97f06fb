package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// depmodMax bounds one run of depmod.
const depmodMax = 2 * time.Minute

// moduleGraph says what each module needs, by path below /usr/lib/modules/RELEASE.
type moduleGraph struct {
	needs map[string][]string // from modules.dep
	soft  map[string][]string // module name → names, from modules.softdep
	names map[string][]string // module name or alias → paths
}

// moduleName is the kernel's name of a module file: dashes become underscores.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return kernelName(name)
}

// kernelName is a name as the kernel writes it: with underscores.
func kernelName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// readModuleGraph reads modules.dep, modules.alias and modules.softdep.
func readModuleGraph(dep, alias, softdep io.Reader) (*moduleGraph, error) {
	g := &moduleGraph{needs: map[string][]string{}, soft: map[string][]string{}, names: map[string][]string{}}
	for _, read := range []error{g.readDep(dep), g.readAlias(alias), g.readSoftdep(softdep)} {
		if read != nil {
			return nil, read
		}
	}
	return g, nil
}

func (g *moduleGraph) readDep(dep io.Reader) error {
	lines := bufio.NewScanner(dep)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		module, needs, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			return fmt.Errorf("modules.dep: no colon in %q", lines.Text())
		}
		g.needs[module] = strings.Fields(needs)
		g.names[moduleName(module)] = append(g.names[moduleName(module)], module)
	}
	return lines.Err()
}

// readAlias takes the aliases that are plain names, as soft dependencies use them:
// alias crc32c crc32c_generic. Patterns are for devices.
func (g *moduleGraph) readAlias(alias io.Reader) error {
	lines := bufio.NewScanner(alias)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || fields[0] != "alias" || strings.ContainsAny(fields[1], "*?[:") {
			continue
		}
		name := kernelName(fields[1])
		g.names[name] = append(g.names[name], g.names[kernelName(fields[2])]...)
	}
	return lines.Err()
}

func (g *moduleGraph) readSoftdep(softdep io.Reader) error {
	lines := bufio.NewScanner(softdep)
	for lines.Scan() {
		// softdep NAME pre: A B post: C
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "softdep" {
			continue
		}
		module := kernelName(fields[1])
		for _, field := range fields[2:] {
			if field != "pre:" && field != "post:" {
				g.soft[module] = append(g.soft[module], kernelName(field))
			}
		}
	}
	return lines.Err()
}

// closure gives the modules that match any pattern and all that they need, sorted.
// A soft dependency that is built in or absent is not an error; a pattern that
// matches nothing is.
func (g *moduleGraph) closure(patterns []string) ([]string, error) {
	chosen := map[string]bool{}
	var missing error
	var add func(module string)
	add = func(module string) {
		if chosen[module] {
			return
		}
		chosen[module] = true
		for _, need := range g.needs[module] {
			add(need)
		}
		for _, name := range g.soft[moduleName(module)] {
			for _, soft := range g.names[name] {
				add(soft)
			}
		}
	}
	for _, pattern := range patterns {
		matched := false
		for module := range g.needs {
			if matchModule(pattern, strings.TrimPrefix(module, "kernel/")) {
				add(module)
				matched = true
			}
		}
		if !matched {
			missing = errors.Join(missing, fmt.Errorf("no module matches %q", pattern))
		}
	}
	var modules []string
	for module := range chosen {
		modules = append(modules, module)
	}
	slices.Sort(modules)
	return modules, missing
}

// matchModule matches like path.Match; a last element ** matches any depth.
func matchModule(pattern, module string) bool {
	if dir, ok := strings.CutSuffix(pattern, "/**"); ok {
		return strings.HasPrefix(module, dir+"/")
	}
	ok, err := path.Match(pattern, module)
	return ok && err == nil
}

// moduleGraph indexes the kernel's modules and reads the result.
func (b *builder) moduleGraph() (*moduleGraph, error) {
	dir := b.debian("usr/lib/modules/" + b.kernel)
	if _, err := os.Stat(filepath.Join(dir, "modules.dep")); err != nil {
		if err := b.depmod(b.debian("")); err != nil {
			return nil, err
		}
	}
	var indexes [3]*os.File
	for i, name := range []string{"modules.dep", "modules.alias", "modules.softdep"} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		indexes[i] = f
	}
	return readModuleGraph(indexes[0], indexes[1], indexes[2])
}

// installModules copies the modules of the lists into a tree, with indexes that
// name exactly those.
func (b *builder) installModules(tree string, patterns []string) error {
	graph, err := b.moduleGraph()
	if err != nil {
		return err
	}
	modules, err := graph.closure(patterns)
	if err != nil {
		return err
	}
	to := filepath.Join(tree, "usr/lib/modules", b.kernel)
	for _, module := range modules {
		if err := b.copyModule(module, to); err != nil {
			return err
		}
	}
	// depmod reads these: the link order and what is built into the kernel.
	for _, file := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		if err := copyFile(b.debian("usr/lib/modules/"+b.kernel+"/"+file), filepath.Join(to, file), 0o644); err != nil {
			return err
		}
	}
	if err := b.depmod(tree); err != nil {
		return err
	}
	return pruneIndexes(to)
}

// depmod writes the indexes of the modules in a tree.
func (b *builder) depmod(tree string) error {
	_, err := b.tool(depmodMax, "usr/sbin/depmod", "-b", tree, b.kernel)
	return err
}

// pruneIndexes keeps the text indexes that a capsule reads.
func pruneIndexes(dir string) error {
	keep := []string{"modules.dep", "modules.alias", "modules.softdep", "modules.builtin", "modules.builtin.modinfo"}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() || slices.Contains(keep, entry.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return chmodAll(dir)
}

// chmodAll gives folders 0755, programs 0755 and other files 0644 below dir.
func chmodAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.IsDir() || info.Mode()&0o111 != 0 {
			return os.Chmod(path, 0o755)
		}
		return os.Chmod(path, 0o644)
	})
}
