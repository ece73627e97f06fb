package volume

import (
	"fmt"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/lvm"
)

// How full the pool may become, in percent of its data or of its metadata,
// whichever is fuller. Limits that an operator meets.
const (
	warnPercent     = 80 // it is told
	criticalPercent = 90 // nothing that would need more is made
	fullPercent     = 100
)

// Limits of what volumes may promise together, in percent of the pool.
const (
	overcommitDefault = 1000
	overcommitMin     = 100
	overcommitMax     = 100_000
)

// percent of total that is used, rounded down.
func percent(used, total int64) int64 {
	if total <= 0 {
		return 0
	}
	const part = 100
	return used/total*part + used%total*part/total
}

// fullness is that of what is fuller, data or metadata, and its name.
func fullness(p lvm.PoolState) (full int64, what string) {
	data, metadata := percent(p.DataUsed, p.DataSize), percent(p.MetadataUsed, p.MetadataSize)
	if metadata > data {
		return metadata, "metadata"
	}
	return data, "data"
}

// level is how serious the state of the pool is.
func level(p lvm.PoolState) v1.PoolLevel {
	full, _ := fullness(p)
	switch {
	case p.Mode != lvm.ModeWrite, full >= fullPercent:
		return v1.PoolLevel_POOL_LEVEL_FULL
	case full >= criticalPercent:
		return v1.PoolLevel_POOL_LEVEL_CRITICAL
	case full >= warnPercent:
		return v1.PoolLevel_POOL_LEVEL_WARN
	}
	return v1.PoolLevel_POOL_LEVEL_OK
}

const nextStepPool = "delete files, snapshots or volumes"

// poolSentence says what is wrong with the pool and what to do; "" when nothing
// is.
func poolSentence(p lvm.PoolState) string {
	switch {
	case p.Mode == lvm.ModeFail:
		return "the pool can't be read: volumes can't be used; restart the capsule, which checks it"
	case p.Mode == lvm.ModeReadOnly:
		return "the pool is read-only after an error or for want of metadata: restart the capsule, which checks it"
	case p.Mode != lvm.ModeWrite || level(p) == v1.PoolLevel_POOL_LEVEL_FULL:
		return "the pool is full: writes to volumes that need space fail; " + nextStepPool
	case level(p) == v1.PoolLevel_POOL_LEVEL_CRITICAL:
		return fmt.Sprintf("the pool is %s: no new volumes, growth or snapshots; %s", fillSentence(p), nextStepPool)
	case level(p) == v1.PoolLevel_POOL_LEVEL_WARN:
		return fmt.Sprintf("the pool is %s; %s", fillSentence(p), nextStepPool)
	}
	return ""
}

// fillSentence gives the figures: "91 % full (910 of 1000 bytes of data)".
func fillSentence(p lvm.PoolState) string {
	full, what := fullness(p)
	used, size := p.DataUsed, p.DataSize
	if what == "metadata" {
		used, size = p.MetadataUsed, p.MetadataSize
	}
	return fmt.Sprintf("%d %% full (%s of %s of %s)", full, amount(used), amount(size), what)
}

// amount writes bytes for people, with two or three digits.
func amount(bytes int64) string {
	value, unit := float64(bytes), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, next
	}
	if unit == "B" || value >= 100 {
		return fmt.Sprintf("%.0f %s", value, unit)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}

// crowded is an error when nothing may be made that would need more of the pool.
func (m *Manager) crowded() error {
	p, err := lvm.ReadPool()
	if err != nil {
		return err
	}
	return tooFull(p)
}

func tooFull(p lvm.PoolState) error {
	if level(p) < v1.PoolLevel_POOL_LEVEL_CRITICAL {
		return nil
	}
	return fmt.Errorf("%s: %w", poolSentence(p), errdefs.ErrResourceExhausted)
}

// overcommit is the percentage of the pool that volumes may promise.
func (s settings) overcommit() uint32 {
	if s.OvercommitMax == 0 {
		return overcommitDefault
	}
	return s.OvercommitMax
}

// promised is what volumes may grow to together, in bytes.
func (s *state) promised() int64 {
	var sum int64
	for _, r := range s.volumes {
		sum += r.Size
	}
	return sum
}

// overcommitted is an error when volumes of so many bytes together are more than
// a pool of that size may promise.
func overcommitted(promised, poolSize int64, most uint32) error {
	const part = 100
	if promised <= poolSize/part*int64(most)+poolSize%part*int64(most)/part {
		return nil
	}
	return fmt.Errorf("volumes would promise %s together, of a pool of %s of which at most %d %% may be promised: "+
		"take less, or allow more with capsulectl volume pool: %w",
		amount(promised), amount(poolSize), most, errdefs.ErrResourceExhausted)
}

// takes is an error when the pool can't take a new volume of that size beside
// those that are kept.
func (m *Manager) takes(size int64) error {
	p, err := lvm.ReadPool()
	if err != nil {
		return err
	}
	if err := tooFull(p); err != nil {
		return err
	}
	s := m.known()
	return overcommitted(s.promised()+size, p.DataSize, s.settings.overcommit())
}

// Pool is the space that all volumes share, as it is now.
func (m *Manager) Pool() (*v1.Pool, error) {
	p, err := lvm.ReadPool()
	if err != nil {
		return nil, err
	}
	s := m.known()
	return &v1.Pool{
		Size: p.DataSize, Used: p.DataUsed, MetadataSize: p.MetadataSize, MetadataUsed: p.MetadataUsed,
		Promised: s.promised(), OvercommitMax: s.settings.overcommit(),
		Level: level(p), Message: poolSentence(p), Reserve: m.guard.reserve.Load(),
	}, nil
}

// SetPool changes how much volumes may promise together, in percent of the pool.
// What is promised already stays.
func (m *Manager) SetPool(overcommit uint32) (*v1.Pool, error) {
	if err := m.usable(); err != nil {
		return nil, err
	}
	if overcommit < overcommitMin || overcommit > overcommitMax {
		return nil, fmt.Errorf("the most that volumes may promise must be within %d and %d %% of the pool, found %d: %w",
			overcommitMin, overcommitMax, overcommit, errdefs.ErrInvalidArgument)
	}
	err := m.change(func(c *change) error {
		s := c.settings
		s.OvercommitMax = overcommit
		return c.putSettings(s)
	})
	if err != nil {
		return nil, err
	}
	return m.Pool()
}
