package main

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	diskfs "github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/uuid"

	"capsule/internal/disk"
	"capsule/internal/fat"
	"capsule/internal/lvm"
	"capsule/internal/slot"
)

// Sizes in bytes. ESP and slots keep theirs for the life of a machine; PERM is
// grown at boot to the end of the disk.
const (
	sector    = 512
	alignment = 1 << 20
	espSize   = disk.ESPBytes
	slotSize  = disk.SlotBytes
	permSize  = 1 << 30
)

const (
	typeESP  = gpt.EFISystemPartition
	typeSlot = gpt.LinuxFilesystem
	typePERM = gpt.LinuxLVM
	diskSize = alignment + espSize + 2*slotSize + permSize + alignment
)

// espFile is one file of the ESP: its path there, and where it comes from.
type espFile struct {
	path    string
	from    string // file, when not empty
	content string
}

// loaderConf never names a default: that would boot a slot whose tries are used up.
const loaderConf = "timeout 0\neditor no\n"

func (b *builder) espFiles(uki string) ([]espFile, error) {
	kernel := slot.KernelFile(b.version)
	entry, text, err := slot.FirstEntry(disk.SlotA, b.version, kernel)
	if err != nil {
		return nil, err
	}
	files := []espFile{
		{path: "/EFI/BOOT/BOOTX64.EFI", from: b.debian("usr/lib/systemd/boot/efi/systemd-bootx64.efi")},
		{path: kernel, from: uki},
		{path: "/loader/loader.conf", content: loaderConf},
		{path: "/" + entry, content: string(text)},
	}
	if b.seed != "" {
		files = append(files, espFile{path: "/" + disk.SeedFile, from: b.seed})
	}
	return files, nil
}

// buildDisk makes the image that is written to a capsule's disk: slot A holds the
// root, slot B is empty.
func (b *builder) buildDisk(root rootImage, uki string) error {
	image := filepath.Join(b.out, "capsule.img")
	files, err := b.espFiles(uki)
	if err != nil {
		return err
	}
	k := newKey("disk 3", root.Digest, b.buildUnix)
	for _, file := range files {
		k.text(file.path, file.content)
		if file.from != "" {
			k.file(file.from)
		}
	}
	return b.step("disk image", k, []string{image}, func() error {
		next := image + ".new"
		if err := b.writeDisk(next, root, files); err != nil {
			return err
		}
		return os.Rename(next, image)
	})
}

func (b *builder) writeDisk(image string, root rootImage, files []espFile) (err error) {
	if err := os.Remove(image); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	d, err := diskfs.Create(image, diskSize, diskfs.SectorSize512)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := d.Partition(partitions(root.Hash)); err != nil {
		return fmt.Errorf("partition %s: %w", image, err)
	}
	out, err := d.Backend.Writable()
	if err != nil {
		return err
	}
	if err := writeESP(io.NewOffsetWriter(out, alignment), root.Hash, time.Unix(b.buildUnix, 0), files); err != nil {
		return fmt.Errorf("fill the ESP of %s: %w", image, err)
	}
	// PERM says that it's new, so that the first boot needn't read it all to know.
	if _, err := out.WriteAt(lvm.Mark(), alignment+espSize+2*slotSize+lvm.MarkAt); err != nil {
		return fmt.Errorf("mark PERM of %s: %w", image, err)
	}
	return writeSlot(io.NewOffsetWriter(out, alignment+espSize), root.Path)
}

// partitions is the table of the disk. Its identifiers come from the root's hash,
// so that equal inputs give equal disks.
func partitions(hash string) *gpt.Table {
	id := func(name string) string {
		sum := sha256.Sum256([]byte(hash + name))
		sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80 // version 8: of our own making
		return uuid.UUID(sum[:16]).String()
	}
	table := &gpt.Table{GUID: id("disk"), ProtectiveMBR: true, LogicalSectorSize: sector, PhysicalSectorSize: sector}
	start := uint64(alignment)
	for _, part := range []struct {
		name string
		kind gpt.Type
		size uint64
	}{{"ESP", typeESP, espSize}, {"slot_a", typeSlot, slotSize}, {"slot_b", typeSlot, slotSize}, {"PERM", typePERM, permSize}} {
		table.Partitions = append(table.Partitions, &gpt.Partition{
			Index: len(table.Partitions) + 1,
			Start: start / sector, End: (start+part.size)/sector - 1, Size: part.size,
			Type: part.kind, Name: part.name, GUID: id(part.name),
		})
		start += part.size
	}
	return table
}

// writeESP fills the ESP.
func writeESP(out io.WriterAt, hash string, when time.Time, files []espFile) error {
	serial := sha256.Sum256([]byte(hash + "ESP"))
	volume := fat.Volume{
		Out: out, Bytes: espSize, Sector: sector, Hidden: alignment / sector,
		Serial: binary.LittleEndian.Uint32(serial[:]), Label: "ESP", When: when,
	}
	var list []fat.File
	for _, file := range files {
		content := []byte(file.content)
		if file.from != "" {
			var err error
			if content, err = os.ReadFile(file.from); err != nil {
				return err
			}
		}
		list = append(list, fat.Text(file.path, content))
	}
	return fat.Write(volume, list)
}

// writeSlot copies the root to a slot.
func writeSlot(out io.Writer, root string) error {
	in, err := os.Open(root)
	if err != nil {
		return err
	}
	defer in.Close()
	n, err := io.Copy(out, io.LimitReader(in, slotSize+1))
	if err == nil && n > slotSize {
		return fmt.Errorf("%s does not fit a slot of %d bytes", root, slotSize)
	}
	return err
}
