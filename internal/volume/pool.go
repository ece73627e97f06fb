package volume

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/lvm"
	"capsule/internal/store"
)

// Limits of the pool, in percent. Data or metadata count, whichever is fuller.
type Limits struct {
	Warn       int64  // used: it is told
	Critical   int64  // used: nothing that would need more is made
	Overcommit uint32 // of the pool's size that volumes may promise together
}

// DefaultLimits hold without any word of the operator.
var DefaultLimits = Limits{Warn: manifest.PoolWarn, Critical: manifest.PoolLimit, Overcommit: manifest.PoolOvercommit}

const fullPercent = 100

// SetLimits changes the limits from now on. What is promised already stays.
func (m *Manager) SetLimits(l Limits) { m.limits.Store(&l) }

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
func (l Limits) level(p lvm.PoolState) v1.PoolLevel {
	full, _ := fullness(p)
	switch {
	case p.Mode != lvm.ModeWrite, full >= fullPercent:
		return v1.PoolLevel_POOL_LEVEL_FULL
	case full >= l.Critical:
		return v1.PoolLevel_POOL_LEVEL_CRITICAL
	case full >= l.Warn:
		return v1.PoolLevel_POOL_LEVEL_WARN
	}
	return v1.PoolLevel_POOL_LEVEL_OK
}

const nextStepPool = "delete files, snapshots or volumes"

// sentence says what is wrong with the pool and what to do; "" when nothing
// is.
func (l Limits) sentence(p lvm.PoolState) string {
	switch {
	case p.Mode == lvm.ModeFail:
		return "the pool can't be read: volumes can't be used; restart the capsule, which checks it"
	case p.Mode == lvm.ModeReadOnly:
		return "the pool is read-only after an error or for want of metadata: restart the capsule, which checks it"
	case p.Mode != lvm.ModeWrite || l.level(p) == v1.PoolLevel_POOL_LEVEL_FULL:
		return "the pool is full: writes to volumes that need space fail; " + nextStepPool
	case l.level(p) == v1.PoolLevel_POOL_LEVEL_CRITICAL:
		return fmt.Sprintf("the pool is %s: no new volumes, growth or snapshots; %s", fillSentence(p), nextStepPool)
	case l.level(p) == v1.PoolLevel_POOL_LEVEL_WARN:
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
	return m.limits.Load().tooFull(p)
}

func (l Limits) tooFull(p lvm.PoolState) error {
	if l.level(p) < v1.PoolLevel_POOL_LEVEL_CRITICAL {
		return nil
	}
	return fmt.Errorf("%s: %w", l.sentence(p), errdefs.ErrResourceExhausted)
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
		"take less, or allow more with capsulectl volume pool --overcommit-max: %w",
		amount(promised), amount(poolSize), most, errdefs.ErrResourceExhausted)
}

// takes is an error when the pool can't take a new volume of that size beside
// those that are kept.
func (m *Manager) takes(size int64) error {
	p, err := lvm.ReadPool()
	if err != nil {
		return err
	}
	limits := m.limits.Load()
	if err := limits.tooFull(p); err != nil {
		return err
	}
	s := m.known()
	return overcommitted(s.promised()+size, p.DataSize, limits.Overcommit)
}

// Pool is the space that all volumes share, as it is now.
func (m *Manager) Pool() (*v1.Pool, error) {
	p, err := lvm.ReadPool()
	if err != nil {
		return nil, err
	}
	s, limits := m.known(), m.limits.Load()
	return &v1.Pool{
		Size: p.DataSize, Used: p.DataUsed, MetadataSize: p.MetadataSize, MetadataUsed: p.MetadataUsed,
		Promised: s.promised(), OvercommitMax: limits.Overcommit,
		Level: limits.level(p), Message: limits.sentence(p), Reserve: m.guard.reserve.Load(),
	}, nil
}

// KeptOvercommit is the share that a capsule kept before its limits were declared
// with it, in percent; zero when it kept none.
func KeptOvercommit(st *store.Store) (uint32, error) {
	value, found, err := st.Bucket(bucketName).Get(settingsKey)
	if err != nil || !found {
		return 0, err
	}
	var kept struct {
		OvercommitMax uint32 `json:"overcommitMax"`
	}
	if err := json.Unmarshal(value, &kept); err != nil {
		return 0, fmt.Errorf("read the settings of the pool: %w", err)
	}
	return kept.OvercommitMax, nil
}
