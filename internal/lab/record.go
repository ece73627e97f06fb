//go:build unix

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// WriteLog is what package blocklog reads: every write, discard and flush of
// the disk since the machine was made with Record.
func (m *Machine) WriteLog() string { return m.path("writes.log") }

// BaseDisk is the disk as it was before the first of them.
func (m *Machine) BaseDisk() string { return m.path("base.img") }

// startRecord keeps the disk as it is, and an empty log.
func (m *Machine) startRecord(ctx context.Context) error {
	return errors.Join(copySparse(ctx, m.BaseDisk(), m.Disk()), os.WriteFile(m.WriteLog(), nil, 0o600))
}

// recordArguments put QEMU's blklogwrites over the disk. Discards are logged
// only when both nodes pass them on. The guest writes its zeros itself: one
// request that writes zeros is two in the log, between which another could come.
// Requests go one by one: out of those of one moment QEMU makes larger ones of up to
// IOV_MAX (1024) pieces, blklogwrites adds two to each, and the guest sees an I/O error.
// A later start goes on in the same log.
func (m *Machine) recordArguments() []string {
	resumed := "off"
	if info, err := os.Stat(m.WriteLog()); err == nil && info.Size() > 0 {
		resumed = "on"
	}
	return []string{
		"-blockdev", "driver=file,node-name=disk-file,discard=unmap,filename=" + quote(m.Disk()),
		"-blockdev", "driver=file,node-name=log-file,filename=" + quote(m.WriteLog()),
		"-blockdev", fmt.Sprintf("driver=blklogwrites,node-name=%s,file=disk-file,log=log-file,log-sector-size=%d,log-append=%s,discard=unmap",
			recordNode, sectorBytes, resumed),
		"-device", "virtio-blk-pci,drive=" + recordNode + ",write-cache=on,write-zeroes=off,request-merging=off,serial=capsule-lab,bootindex=0",
	}
}

// recordNode is the block node that the guest sees.
const recordNode = "disk"

// Logged is the length of the log in bytes. What the machine has been told to be
// done is within it.
func (m *Machine) Logged() (int64, error) {
	info, err := os.Stat(m.WriteLog())
	if err != nil {
		return 0, fmt.Errorf("log of writes of machine %q: %w", m.Name, err)
	}
	return info.Size(), nil
}

// GrowDisk makes the disk of a running machine larger; a capsule uses it at its
// next start.
func (m *Machine) GrowDisk(ctx context.Context, size int64) error {
	block := map[string]any{"device": "disk", "size": size}
	if m.Record {
		block = map[string]any{"node-name": recordNode, "size": size}
	}
	_, err := m.QMP(ctx, "block_resize", block)
	return err
}
