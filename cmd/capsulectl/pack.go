package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"capsule/internal/filecopy"
)

// checkSource finds a source that can't be copied before the capsule is asked.
func checkSource(source string) error {
	if source == "" {
		return &failure{exitUsage, errors.New("the source has no name"), ""}
	}
	info, err := statSource(source)
	if err != nil {
		return readError(source, err)
	}
	if strings.HasSuffix(source, "/") && !info.IsDir() {
		return fmt.Errorf("copy %q: not a folder", source)
	}
	return nil
}

// statSource follows a link only where the name asks for a folder.
func statSource(source string) (fs.FileInfo, error) {
	if strings.HasSuffix(source, "/") || filecopy.Base(source) == "." {
		return os.Stat(source)
	}
	return os.Lstat(source)
}

// pack writes a file or folder of this machine as a tar stream: the source
// first, named by its last element, then all below it.
func pack(source string, w io.Writer) error {
	p := &packer{tar: tar.NewWriter(w), links: map[inode]string{}}
	info, err := statSource(source)
	if err != nil {
		return readError(source, err)
	}
	if err := p.add(filepath.FromSlash(source), filecopy.Base(source), info); err != nil {
		return err
	}
	return p.tar.Close()
}

type packer struct {
	tar   *tar.Writer
	links map[inode]string // first names of files with several
}

func (p *packer) add(file, name string, info fs.FileInfo) error {
	switch mode := info.Mode(); {
	case mode.IsDir():
		return p.addDir(file, name, info)
	case mode.IsRegular():
		return p.addFile(file, name, info)
	case mode&fs.ModeSymlink != 0:
		to, err := os.Readlink(file)
		if err != nil {
			return readError(file, err)
		}
		return p.header(name, filepath.ToSlash(to), info)
	case mode&fs.ModeNamedPipe != 0:
		return p.header(name, "", info)
	}
	return nil // sockets and devices mean nothing elsewhere
}

func (p *packer) header(name, link string, info fs.FileInfo) error {
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	// Numbers count in the workload, not names of this machine.
	h.Name, h.Uname, h.Gname, h.Format = name, "", "", tar.FormatPAX
	return p.tar.WriteHeader(h)
}

func (p *packer) addDir(file, name string, info fs.FileInfo) error {
	if err := p.header(name+"/", "", info); err != nil {
		return err
	}
	entries, err := os.ReadDir(file)
	if err != nil {
		return readError(file, err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			continue
		}
		if err != nil {
			return readError(file, err)
		}
		if err := p.add(filepath.Join(file, e.Name()), path.Join(name, e.Name()), info); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) addFile(file, name string, info fs.FileInfo) error {
	if id, ok := linked(info); ok {
		if first, ok := p.links[id]; ok {
			return p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: first, ModTime: info.ModTime(), Format: tar.FormatPAX})
		}
		p.links[id] = name
	}
	f, err := os.Open(file)
	if err != nil {
		return readError(file, err)
	}
	defer f.Close()
	if err := p.header(name, "", info); err != nil {
		return err
	}
	n, err := io.Copy(p.tar, io.LimitReader(f, info.Size()))
	if err == nil && n < info.Size() {
		err = errors.New("it became shorter while it was read")
	}
	if errors.Is(err, io.EOF) { // of the stream, whose answer says why
		return err
	}
	if err != nil {
		return readError(file, err)
	}
	return nil
}
