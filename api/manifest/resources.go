package manifest

import capsulev1 "capsule/api/capsule/v1"

// Limits of what resources may declare beside memory, processors and processes.
const (
	DiskMin  = 32 << 20      // bytes; a MicroVM's file system takes a part of it
	diskMax  = 16 << 40      // bytes, as ext4 takes them
	ioMin    = 64 << 10      // bytes in a second; a request of the page cache is as large
	ioMax    = 1 << 40       // bytes in a second
	ioOpsMin = 10            // in a second; a synced write takes several
	ioOpsMax = 1_000_000_000 // in a second
)

func (c *check) resources(r *capsulev1.Resources) {
	least, most, of := int64(MemoryMin), int64(cpusMax), ""
	if c.microVM {
		least, most, of = vmMemoryMin, vmCPUsMax, " in a MicroVM"
	}
	if m := r.GetMemory(); m != 0 && m < least {
		c.add("resources.memory", "resources.memory must be at least %s%s", FormatSize(least), of)
	}
	if n := r.GetCpus(); n != 0 && (n < cpusMin || n > most) {
		c.add("resources.cpus", "resources.cpus must be within %s and %s%s", formatCPUs(cpusMin), formatCPUs(most), of)
	}
	if n := r.GetPids(); n < 0 || n > pidsMax {
		c.add("resources.pids", "resources.pids must be within 1 and %d", pidsMax)
	}
	c.bytes("resources.disk", r.GetDisk(), DiskMin, diskMax)
	c.io(r.GetIo())
}

// io checks limits of traffic, each of which may be absent.
func (c *check) io(io *capsulev1.IO) {
	c.bytes("resources.io.read", io.GetRead(), ioMin, ioMax)
	c.bytes("resources.io.write", io.GetWrite(), ioMin, ioMax)
	for _, f := range []struct {
		path string
		n    int64
	}{{"resources.io.readOperations", io.GetReadOperations()}, {"resources.io.writeOperations", io.GetWriteOperations()}} {
		if f.n != 0 && (f.n < ioOpsMin || f.n > ioOpsMax) {
			c.add(f.path, "%s must be within %d and %d in a second", f.path, ioOpsMin, ioOpsMax)
		}
	}
}

// bytes checks a size that may be absent.
func (c *check) bytes(path string, n, least, most int64) {
	if n != 0 && (n < least || n > most) {
		c.add(path, "%s must be within %s and %s", path, FormatSize(least), FormatSize(most))
	}
}
