//go:build unix

package lab

import (
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

const (
	sectorBytes = 512
	espName     = "ESP"
	seedDir     = "/capsule"
	seedPath    = "/capsule/seed.pem"
)

// seedESP puts the CA's certificate and key where the capsule looks for them
// at its first start.
func seedESP(disk string, seed []byte) error {
	if err := writeESP(disk, seed); err != nil {
		return fmt.Errorf("seed %s: %w", disk, err)
	}
	return nil
}

func writeESP(disk string, seed []byte) error {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	storage := file.New(f, false)
	table, err := gpt.Read(storage, sectorBytes, sectorBytes)
	if err != nil {
		return fmt.Errorf("partition table: %w", err)
	}
	for _, p := range table.Partitions {
		if p.Name != espName {
			continue
		}
		start, sectors := int64(p.Start), int64(p.End-p.Start+1) //nolint:gosec // sectors of a file fit
		fs, err := fat32.Read(storage, sectors*sectorBytes, start*sectorBytes, sectorBytes)
		if err != nil {
			return fmt.Errorf("partition %q: %w", espName, err)
		}
		if err := putFile(fs, seed); err != nil {
			return fmt.Errorf("write %s: %w", seedPath, err)
		}
		return f.Sync()
	}
	return fmt.Errorf("no partition %q: %w", espName, errdefs.ErrNotFound)
}

func putFile(fs *fat32.FileSystem, data []byte) error {
	if err := fs.Mkdir(seedDir); err != nil {
		return err
	}
	out, err := fs.OpenFile(seedPath, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return err
	}
	if _, err := out.Write(data); err != nil {
		return err
	}
	return out.Close()
}
