package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"

	"capsule/internal/disk"
)

// tableMax bounds an allocation table: that of a partition of 1 GiB has 1 MiB.
const tableMax = 64 << 20

// checkESP proves that the loader finds something to start: an entry whose
// kernel is there. The loader and the daemon both rename entries.
func (b *boot) checkESP(context.Context) error {
	f, err := os.OpenFile(b.disk.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	table, err := readTable(f)
	if err != nil {
		return err
	}
	p, err := table.ByName(disk.ESP)
	if err != nil {
		return err
	}
	if err := likeFirst(f, int64(p.First)*sectorBytes); err != nil {
		return fmt.Errorf("allocation tables: %w", err)
	}
	esp, err := fat32.Read(file.New(f, true), int64(table.Bytes(p)), int64(p.First)*sectorBytes, sectorBytes)
	if err != nil {
		return err
	}
	entries, err := esp.ReadDir("loader/entries")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		err := checkEntry(esp, path.Join("loader/entries", e.Name()))
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("none of %d boot entries can be started: %w", len(entries), errors.Join(errs...))
}

// likeFirst makes the second allocation table of the FAT file system at start as
// the first, which is the one that firmware reads. A cut between the writes of both
// does no harm, but the library here wants them equal.
func likeFirst(f *os.File, start int64) error {
	b := make([]byte, sectorBytes)
	if _, err := f.ReadAt(b, start); err != nil {
		return err
	}
	le := binary.LittleEndian
	sector, reserved := int64(le.Uint16(b[11:])), int64(le.Uint16(b[14:]))
	size := int64(le.Uint32(b[36:])) * sector
	if tables := b[16]; tables != 2 || size <= 0 || size > tableMax {
		return fmt.Errorf("%d tables of %d bytes", tables, size)
	}
	table := make([]byte, size)
	if _, err := f.ReadAt(table, start+reserved*sector); err != nil {
		return err
	}
	_, err := f.WriteAt(table, start+reserved*sector+size)
	return err
}

func checkEntry(esp *fat32.FileSystem, name string) error {
	text, err := esp.ReadFile(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for line := range strings.Lines(string(text)) {
		kernel, ok := strings.CutPrefix(strings.TrimSpace(line), "efi /")
		if !ok {
			continue
		}
		info, err := esp.Stat(kernel)
		if err == nil && info.Size() == 0 {
			err = errors.New("empty")
		}
		if err != nil {
			return fmt.Errorf("%s: kernel %s: %w", name, kernel, err)
		}
		return nil
	}
	return fmt.Errorf("%s names no kernel: %q", name, text)
}
