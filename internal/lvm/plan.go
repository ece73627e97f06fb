package lvm

// Sizes in bytes.
const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30

	permMin     = 4 * gib
	permMax     = 64 * gib
	metadataMin = 128 * mib
	metadataMax = 1 * gib

	// growMin is the least gain for which a volume is grown.
	growMin = 64 * mib
)

// A layout is how a group's space is divided.
type layout struct {
	perm, pool, metadata uint64
}

// PoolBytes is how large the pool becomes on a new partition of that size. What the
// group's own records take is left out, with a rest to spare.
func PoolBytes(partitionBytes uint64) uint64 {
	const records = 8 << 20
	group := partitionBytes - min(partitionBytes, records)
	return plan(group, group, ExtentBytes).pool
}

// plan divides a group of this size, of which so much is on PERM, where all of /perm
// lies. perm gets a fifth of that, between 4 and 64 GiB, but
// on small disks never more than half. The pool's metadata is 0.05 % between 128
// MiB and 1 GiB (it's there twice: with lvm's spare for repairs), on small disks
// a 32nd. A twentieth stays free: the last resort for a pool that ran full.
func plan(home, size, extent uint64) layout {
	down := func(n uint64) uint64 { return n / extent * extent }
	var l layout
	l.perm = down(min(max(home/5, permMin), permMax, home/2))
	l.metadata = down(max(min(max(size/2000, metadataMin), metadataMax, size/32), 2*extent))
	if used := l.perm + 2*l.metadata + size/20; used < size {
		l.pool = down(size - used)
	}
	return l
}
