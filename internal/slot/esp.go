package slot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// An esp is the mounted boot partition. FAT has no journal and no atomic rename: a
// cut between a rename's two writes leaves two names on one chain of clusters. So
// each change here is a new file or the end of a file, on the disk before the next
// one begins.
type esp struct {
	dir string
	// step is nil but in tests, where the power goes before a step.
	step func(what, file string) error
}

func (e esp) before(what, file string) error {
	if e.step == nil {
		return nil
	}
	return e.step(what, file)
}

// sync returns once all is on the disk. Syncfs brings FAT's writes to the disk, but
// only an fsync has the disk empty its own cache.
func (e esp) sync() error {
	if e.step != nil {
		return nil
	}
	f, err := os.Open(e.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(unix.Syncfs(int(f.Fd())), f.Sync()); err != nil {
		return fmt.Errorf("sync the boot partition: %w", err)
	}
	return nil
}

// write makes or replaces a file, which doesn't count until its last byte is there.
// What fails is taken away again.
func (e esp) write(file string, text []byte) error {
	if err := e.before("create", file); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(e.dir, file), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = e.before("fill", file)
	if err == nil {
		_, err = f.Write(text)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = e.sync()
	}
	if err != nil {
		_ = e.remove(file)
	}
	return err
}

// remove takes a file away. One that isn't there is no error.
func (e esp) remove(file string) error {
	if err := e.before("remove", file); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(e.dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return e.sync()
}

// find gives a file's path in its own case of letters.
func (e esp) find(file string) (string, bool) {
	at := ""
	for part := range strings.SplitSeq(strings.Trim(file, "/"), "/") {
		entries, _ := os.ReadDir(filepath.Join(e.dir, at))
		next := ""
		for _, have := range entries {
			if strings.EqualFold(have.Name(), part) {
				next = path.Join(at, have.Name())
			}
		}
		if next == "" {
			return "", false
		}
		at = next
	}
	return at, true
}

// An entryFile is an entry, or what's left of one.
type entryFile struct {
	Entry
	text  []byte
	fault string // why the loader can't use it; "" when it can
}

func (f entryFile) path() string { return path.Join(entriesDir, f.File) }

// list reads all files that have the name of one of our entries.
func (e esp) list() ([]entryFile, error) {
	names, err := e.files(entriesDir)
	if err != nil {
		return nil, err
	}
	var out []entryFile
	for _, name := range names {
		entry, ok := parseName(name)
		if !ok {
			continue
		}
		text, err := e.read(path.Join(entriesDir, name))
		if err != nil {
			return nil, fmt.Errorf("boot entry %q: %w", name, err)
		}
		f := entryFile{Entry: entry, text: text}
		if f.parseText(text) != nil {
			f.fault = "it's damaged"
		} else if _, ok := e.find(f.UKI); !ok {
			f.fault = fmt.Sprintf("its UKI %q isn't there", f.UKI)
		}
		out = append(out, f)
	}
	return out, nil
}

// files names the regular files of a folder, which may be missing.
func (e esp) files(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(e.dir, dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the boot partition: %w", err)
	}
	var names []string
	for _, have := range entries {
		if have.Type().IsRegular() {
			names = append(names, have.Name())
		}
	}
	return names, nil
}

// read gives a configuration file's text, the start of an endless one.
func (e esp) read(file string) ([]byte, error) {
	f, err := os.Open(filepath.Join(e.dir, file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, confMax))
}

// unnamed lists the UKIs of our folder that no entry names, an operator's own entry
// included. gone are entries that don't count.
func (e esp) unnamed(gone ...string) ([]string, error) {
	confs, err := e.files(entriesDir)
	if err != nil {
		return nil, err
	}
	var text []byte
	for _, name := range confs {
		if !strings.EqualFold(path.Ext(name), ".conf") || contains(gone, name) {
			continue
		}
		more, err := e.read(path.Join(entriesDir, name))
		if err != nil {
			return nil, fmt.Errorf("boot entry %q: %w", name, err)
		}
		text = append(text, bytes.ToLower(more)...)
	}
	kernels, err := e.files(kernelsDir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range kernels {
		if strings.EqualFold(path.Ext(name), ".efi") && !bytes.Contains(text, []byte(strings.ToLower(name))) {
			out = append(out, path.Join(kernelsDir, name))
		}
	}
	return out, nil
}

func contains(names []string, name string) bool {
	for _, have := range names {
		if strings.EqualFold(have, name) {
			return true
		}
	}
	return false
}

// Space is how much can be written to the ESP now, in bytes.
func Space(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("space of the boot partition: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// keeps makes sure that a slot is left to boot when the other one loses its system.
func keeps(files []entryFile, slot string, good func(Entry) bool) error {
	fits := func(f entryFile) bool { return f.Slot == slot && f.fault == "" && good(f.Entry) }
	if !slices.ContainsFunc(files, fits) {
		return fmt.Errorf("%s has no good boot entry, the machine would have nothing to boot: %w", slot, errdefs.ErrFailedPrecondition)
	}
	return nil
}
