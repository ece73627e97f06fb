package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"capsule/internal/bundle"
)

// A variant is the bundle of another version than the one that was built last, or of
// a version with a fault: tests of updates push such bundles. It takes all that it
// can from the finished build and changes nothing there. What variants have in common
// is made once, in the folder variantWork beside their files.
type variant struct {
	file    string // the bundle, and the name of its step
	version string // "" for the built one
	built   int64  // seconds since 1970; from 0 down, counted from the built version's
	overlay string // tree that is laid over the root, "" for none
	remove  words  // globs of what goes from the root, before the overlay
	move    words  // OLD=NEW: names that files of the root get, before the overlay
	append  string // put behind the kernel's command line
	hash    string // root hash that the kernel is told, "" for the right one
	image   variantImage
}

const variantWork = "work"

// words is a flag that may be given several times.
type words []string

func (w *words) String() string { return strings.Join(*w, " ") }

// Set adds one.
func (w *words) Set(s string) error {
	*w = append(*w, s)
	return nil
}

func variantFlags(flags *flag.FlagSet) *variant {
	v := &variant{}
	flags.StringVar(&v.file, "variant", "", "write only this bundle, from the finished build, which stays as it is; the flags below are for it")
	flags.StringVar(&v.version, "version", "", "variant: its version (default that of the finished build)")
	flags.Int64Var(&v.built, "built", 0, "variant: seconds since 1970 of its commit; from 0 down, counted from that of the finished build")
	flags.StringVar(&v.overlay, "overlay", "", "variant: folder that is laid over its root")
	flags.Var(&v.remove, "remove", "variant: glob of files to take out of its root; may be repeated")
	flags.Var(&v.move, "move", "variant: OLD=NEW, another name for a file of its root; may be repeated")
	flags.StringVar(&v.append, "append", "", "variant: words to put behind its kernel command line")
	flags.StringVar(&v.hash, "root-hash", "", "variant: root hash to tell its kernel instead of the right one")
	return v
}

// variantImage is what is known of the finished build.
type variantImage struct {
	version string
	built   int64
	stamps  []string // keys of its last steps
}

// buildVariant holds the build's folders as they are meanwhile; other variants may be
// made at the same time elsewhere.
func (b *builder) buildVariant(v *variant) error {
	unlock, err := b.lockFolders(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	if err := v.inspect(b); err != nil {
		return fmt.Errorf("read the finished build in %s: %w: run \"make image\"", b.out, err)
	}
	own := *b // its packages and parts are the build's, its steps are not
	own.version, own.buildUnix = v.version, v.built
	own.cache = filepath.Join(filepath.Dir(v.file), variantWork)
	if err := os.MkdirAll(filepath.Join(own.cache, "steps"), 0o755); err != nil {
		return err
	}
	unlockOwn, err := own.exclusive()
	if err != nil {
		return err
	}
	defer unlockOwn()
	k := v.rootKey(&own).text(commandLine(rootImage{}), v.append, v.hash, own.signWith)
	return own.step(filepath.Base(v.file), k, []string{v.file}, func() error { return v.build(&own) })
}

// inspect fills in what the build says.
func (v *variant) inspect(b *builder) (err error) {
	if err := b.readLock(filepath.Join(b.cache, lockName)); err != nil {
		return err
	}
	for _, step := range []string{"root tree", "root image", "initrd", "microcode"} {
		stamp, err := os.ReadFile(b.stamp(step))
		if err != nil {
			return err
		}
		v.image.stamps = append(v.image.stamps, string(stamp))
	}
	// A new key would be one that no root trusts.
	if _, err := os.Stat(filepath.Join(b.out, developmentKey+bundle.PrivateSuffix)); err != nil {
		return err
	}
	if v.image.version, err = releasedVersion(filepath.Join(b.work, "root", "usr/lib/os-release")); err != nil {
		return err
	}
	if v.image.built, err = packedAt(filepath.Join(b.work, "root.erofs")); err != nil {
		return err
	}
	if v.version == "" {
		v.version = v.image.version
	}
	if v.built <= 0 {
		v.built += v.image.built
	}
	return nil
}

// releasedVersion reads the version out of a root: that of the source tree may have
// changed since.
func releasedVersion(osRelease string) (string, error) {
	text, err := os.ReadFile(osRelease)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if version, ok := strings.CutPrefix(line, "VERSION_ID="); ok {
			return strings.TrimSpace(version), nil
		}
	}
	return "", fmt.Errorf("no VERSION_ID in %s", osRelease)
}

// packedAt reads the time that an EROFS image was packed for out of its superblock,
// seconds since 1970: https://docs.kernel.org/filesystems/erofs.html
func packedAt(image string) (int64, error) {
	const superblock, buildTime = 1024, 24
	f, err := os.Open(image)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var s [buildTime + 8]byte
	if _, err := f.ReadAt(s[:], superblock); err != nil {
		return 0, err
	}
	if binary.LittleEndian.Uint32(s[:]) != 0xE0F5E1E2 {
		return 0, fmt.Errorf("%s is not of EROFS", image)
	}
	return int64(binary.LittleEndian.Uint64(s[buildTime:])), nil
}

// rootKey identifies the root of the variant.
func (v *variant) rootKey(own *builder) *key {
	k := newKey("variant 1", v.image.stamps, own.version, own.buildUnix, v.remove, v.move)
	if v.overlay != "" {
		k.tree(v.overlay)
	}
	return k
}

func (v *variant) build(own *builder) error {
	root, err := v.root(own)
	if err != nil {
		return err
	}
	told := root
	if v.hash != "" {
		told.Hash = v.hash
	}
	line := commandLine(told)
	if v.append != "" {
		line += " " + v.append
	}
	uki := v.file + ".efi"
	defer os.Remove(uki)
	if err := own.writeUKI(uki, line); err != nil {
		return err
	}
	key, err := own.signer()
	if err != nil {
		return err
	}
	m, err := own.bundleManifest(root, uki)
	if err != nil {
		return err
	}
	return writeBundle(v.file, m, key, uki, root.Path)
}

// root makes the root image, if no variant before had the same.
func (v *variant) root(own *builder) (rootImage, error) {
	built := filepath.Join(own.work, "root.erofs")
	if v.version == v.image.version && v.built == v.image.built && v.overlay == "" && len(v.remove)+len(v.move) == 0 {
		return readRootImage(built, built+".facts")
	}
	sum, err := v.rootKey(own).sum()
	if err != nil {
		return rootImage{}, err
	}
	name := "root-" + sum[:12]
	image := filepath.Join(own.cache, name+".erofs")
	program, err := v.program(own)
	if err != nil {
		return rootImage{}, err
	}
	err = own.step(name, v.rootKey(own), []string{image, image + ".facts"}, func() error {
		tree := filepath.Join(own.cache, "tree")
		defer os.RemoveAll(tree)
		if err := v.tree(own, tree, program); err != nil {
			return err
		}
		return own.packTree(tree, image, image+".facts")
	})
	if err != nil {
		return rootImage{}, err
	}
	return readRootImage(image, image+".facts")
}

// program is capsuled of this version, the only program of ours that tells it.
func (v *variant) program(own *builder) (string, error) {
	if v.version == v.image.version && v.built == v.image.built {
		return filepath.Join(own.work, "bin", "capsuled"), nil
	}
	sum, err := newKey(v.image.stamps, own.version, own.buildUnix).sum()
	if err != nil {
		return "", err
	}
	name := "capsuled-" + sum[:12]
	dir := filepath.Join(own.cache, name)
	program := filepath.Join(dir, "capsuled")
	return program, own.step(name, newKey(sum), []string{program}, func() error {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		return own.compileOurs(dir, "capsuled")
	})
}

// tree lays out the root. Its files are the build's own until something takes their
// name: none may be written to.
func (v *variant) tree(own *builder, tree, program string) error {
	if err := os.RemoveAll(tree); err != nil {
		return err
	}
	if err := linkTree(filepath.Join(own.work, "root"), tree); err != nil {
		return err
	}
	if err := v.prune(own, tree); err != nil {
		return err
	}
	if err := layFile(program, filepath.Join(tree, "usr/bin/capsuled")); err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(tree, "usr/lib/os-release"), []byte(osRelease(own.version))); err != nil {
		return err
	}
	for _, names := range v.move {
		before, after, _ := strings.Cut(names, "=")
		if err := os.Rename(filepath.Join(tree, before), filepath.Join(tree, after)); err != nil {
			return err
		}
	}
	if v.overlay == "" {
		return nil
	}
	return layTree(v.overlay, tree, layFile)
}

// prune takes out what the globs match; a module leaves the kernel's indexes too.
func (v *variant) prune(own *builder, tree string) error {
	var gone []string
	for _, glob := range v.remove {
		paths, err := filepath.Glob(filepath.Join(tree, glob))
		if err != nil {
			return err
		}
		if len(paths) == 0 {
			return fmt.Errorf("nothing in the root matches %q", glob)
		}
		for _, path := range paths {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
		gone = append(gone, paths...)
	}
	gone = slices.DeleteFunc(gone, func(path string) bool { return !strings.Contains(filepath.Base(path), ".ko") })
	if len(gone) == 0 {
		return nil
	}
	return forgetModules(filepath.Join(tree, "usr/lib/modules", own.kernel), gone)
}

// forgetModules takes modules out of the indexes in dir, by which they are found.
func forgetModules(dir string, modules []string) error {
	files, names := map[string]bool{}, map[string]bool{}
	for _, path := range modules {
		file, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[file], names[moduleName(path)] = true, true
	}
	for index, drop := range map[string]func(line string) bool{
		"modules.dep": func(line string) bool {
			file, _, _ := strings.Cut(line, ":")
			return files[file]
		},
		"modules.alias": func(line string) bool {
			fields := strings.Fields(line) // alias PATTERN NAME
			return len(fields) == 3 && names[kernelName(fields[2])]
		},
	} {
		text, err := os.ReadFile(filepath.Join(dir, index))
		if err != nil {
			return err
		}
		var kept strings.Builder
		for line := range strings.Lines(string(text)) {
			if !drop(line) {
				kept.WriteString(line)
			}
		}
		if err := replaceFile(filepath.Join(dir, index), []byte(kept.String())); err != nil {
			return err
		}
	}
	return nil
}

// linkTree gives all files of a tree a second name, or copies them where the other
// folder is on another file system.
func linkTree(from, to string) error {
	return layTree(from, to, func(from, to string) error {
		err := os.Link(from, to)
		if errors.Is(err, unix.EXDEV) {
			return copyEntry(from, to)
		}
		return err
	})
}

// layFile puts a copy in place of what has the name.
func layFile(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return copyEntry(from, to)
}

// layTree lays the entries of a tree over another; folders stay or are made.
func layTree(from, to string, lay func(from, to string) error) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		return lay(path, target)
	})
}
