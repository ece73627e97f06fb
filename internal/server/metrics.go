package server

import (
	"context"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	capsulev1 "capsule/api/capsule/v1"
)

const (
	scrapesAtOnce = 4
	scrapeMax     = 20 * time.Second
)

// newMetrics answers with what this capsule tells Prometheus. Nothing is counted
// meanwhile: each answer is read from where it stands.
func newMetrics(o Options) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{Options: o})
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesAtOnce, ErrorHandling: promhttp.ContinueOnError, EnableOpenMetrics: true})
}

// collector reads metrics. Labels are names of declared objects and words of ours,
// both bounded.
type collector struct{ Options }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("capsule_"+name, help, labels, nil)
}

var (
	descBuild   = desc("build_info", "1, with what runs in its labels.", "version", "kernel", "architecture", "slot")
	descMode    = desc("mode", "1 for the mode that the capsule came up in, else 0.", "mode")
	descBoot    = desc("boot_time_seconds", "When the machine started, in seconds since 1970.")
	descStarts  = desc("daemon_starts_total", "Starts of the capsule's service since the machine's start.")
	descUplink  = desc("uplink_up", "1 when the capsule has an address on its uplink.")
	descClock   = desc("clock_synchronized", "1 when the clock was set by a time server.")
	descNew     = desc("update_tentative", "1 while the running system is not confirmed and may be rolled back.")
	descPass    = desc("full_pass_seconds", "Time that the last look at all workloads took, with the steps that it led to.")
	descEvents  = desc("events_total", "Events that happened on this installation; the number of the newest.")
	descPerm    = desc("perm_size_bytes", "Size of /perm, which holds state, images and logs.")
	descPermOff = desc("perm_free_bytes", "Bytes of /perm that are free.")

	descCPUs     = desc("cpus", "Processors of the machine.")
	descCPU      = desc("cpu_seconds_total", "Time that all processors together were busy.")
	descMemory   = desc("memory_size_bytes", "Memory of the machine.")
	descUsed     = desc("memory_bytes", "Memory in use, without what can be given back at once.")
	descRead     = desc("disk_read_bytes_total", "Bytes read from disks.")
	descWritten  = desc("disk_written_bytes_total", "Bytes written to disks.")
	descReceived = desc("network_received_bytes_total", "Bytes received by real network cards.")
	descSent     = desc("network_sent_bytes_total", "Bytes sent by real network cards.")

	descPool         = desc("pool_size_bytes", "Size of the pool for volumes.")
	descPoolUsed     = desc("pool_data_bytes", "Bytes of the pool that hold data.")
	descPoolMeta     = desc("pool_metadata_size_bytes", "Size of the pool's metadata.")
	descPoolMetaUsed = desc("pool_metadata_bytes", "Bytes of the pool's metadata in use.")
	descPoolPromised = desc("pool_promised_bytes", "Bytes that volumes may grow to together.")
	descPoolLevel    = desc("pool_level", "1 for how full the pool is, else 0.", "level")

	descVolume      = desc("volume_size_bytes", "Size of the volume.", "volume")
	descVolumeUsed  = desc("volume_data_bytes", "Bytes of the pool that the volume refers to, to a 64th of its size.", "volume")
	descVolumeState = desc("volume_state", "1 for the state that the volume is in, else 0.", "volume", "state")

	workloadLabels   = []string{"workload", "kind"}
	descState        = desc("workload_state", "1 for the state that the workload is in, else 0.", "workload", "kind", "state")
	descHealth       = desc("workload_health", "1 for what the workload's checks say, else 0; only of those with checks.", "workload", "kind", "health")
	descRestarts     = desc("workload_restarts_total", "Starts after the first since the last change of the workload.", workloadLabels...)
	descRunning      = desc("workload_running", "1 while an instance of the workload runs.", workloadLabels...)
	descWCPU         = desc("workload_cpu_seconds_total", "Time of processors that the instance has taken.", workloadLabels...)
	descWCPULimit    = desc("workload_cpu_limit", "Processors that the workload may take; only where it has a limit.", workloadLabels...)
	descWMemory      = desc("workload_memory_bytes", "Memory of the instance, without what can be given back at once.", workloadLabels...)
	descWMemoryLimit = desc("workload_memory_limit_bytes", "Memory that the workload may take; only where it has a limit.", workloadLabels...)
	descWPIDs        = desc("workload_processes", "Processes and threads of the instance.", workloadLabels...)
	descWRead        = desc("workload_disk_read_bytes_total", "Bytes that the instance has read from disks.", workloadLabels...)
	descWWritten     = desc("workload_disk_written_bytes_total", "Bytes that the instance has written to disks.", workloadLabels...)
	descWReceived    = desc("workload_network_received_bytes_total", "Bytes that the workload has received over its link.", workloadLabels...)
	descWSent        = desc("workload_network_sent_bytes_total", "Bytes that the workload has sent over its link.", workloadLabels...)
)

var allDescs = []*prometheus.Desc{
	descBuild, descMode, descBoot, descStarts, descUplink, descClock, descNew, descPass, descEvents, descPerm, descPermOff,
	descCPUs, descCPU, descMemory, descUsed, descRead, descWritten, descReceived, descSent,
	descPool, descPoolUsed, descPoolMeta, descPoolMetaUsed, descPoolPromised, descPoolLevel,
	descVolume, descVolumeUsed, descVolumeState,
	descState, descHealth, descRestarts, descRunning, descWCPU, descWCPULimit, descWMemory, descWMemoryLimit, descWPIDs,
	descWRead, descWWritten, descWReceived, descWSent,
}

// Describe is prometheus.Collector's.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range allDescs {
		out <- d
	}
}

// metricSink takes metrics.
type metricSink chan<- prometheus.Metric

func (s metricSink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s metricSink) counter(d *prometheus.Desc, v float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
}

// word tells of a value of an enumeration, as one metric for each word.
func (s metricSink) word(d *prometheus.Desc, value int32, names map[int32]string, prefix string, labels ...string) {
	for n, name := range names {
		if n != 0 { // unspecified is said by none
			s.gauge(d, truth(n == value), append(labels[:len(labels):len(labels)], plainWord(name, prefix))...)
		}
	}
}

// plainWord makes "back-off" of PHASE_BACK_OFF.
func plainWord(name, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, prefix)), "_", "-")
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Collect is prometheus.Collector's. A part that can't be read is missing.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	defer func() { // in a goroutine of the library's, where it would end the daemon
		if p := recover(); p != nil {
			c.Log.Error("metrics panicked", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), scrapeMax)
	defer cancel()
	s := metricSink(out)
	c.machine(s)
	c.pool(s)
	if sample, err := c.sample(ctx); err == nil {
		c.use(s, sample)
	} else {
		c.Log.Warn("metrics", "error", err)
	}
	if c.Store != nil {
		c.declared(s)
	}
}

func (c *collector) machine(s metricSink) {
	info := c.Machine.Info()
	mode, _ := c.Machine.Mode()
	s.gauge(descBuild, 1, c.Version, info.GetKernel(), info.GetArchitecture(), info.GetSlot())
	s.word(descMode, int32(mode), capsulev1.Mode_name, "MODE_")
	s.gauge(descBoot, float64(info.GetBootedAt().AsTime().Unix()))
	s.counter(descStarts, float64(info.GetDaemonStarts()))
	s.gauge(descUplink, truth(len(info.GetAddresses()) > 0))
	s.gauge(descClock, truth(info.GetClockSynchronized()))
	s.gauge(descNew, truth(c.Updates != nil && c.Updates.Tentative() != nil))
	if c.LastPass != nil && c.LastPass() > 0 {
		s.gauge(descPass, c.LastPass().Seconds())
	}
	if info.GetPermTotal() > 0 {
		s.gauge(descPerm, float64(info.GetPermTotal()))
		s.gauge(descPermOff, float64(info.GetPermFree()))
	}
}

func (c *collector) pool(s metricSink) {
	if c.Volumes == nil {
		return
	}
	p, err := c.Volumes.Pool()
	if err != nil || p == nil {
		return
	}
	s.gauge(descPool, float64(p.GetSize()))
	s.gauge(descPoolUsed, float64(p.GetUsed()))
	s.gauge(descPoolMeta, float64(p.GetMetadataSize()))
	s.gauge(descPoolMetaUsed, float64(p.GetMetadataUsed()))
	s.gauge(descPoolPromised, float64(p.GetPromised()))
	s.word(descPoolLevel, int32(p.GetLevel()), capsulev1.PoolLevel_name, "POOL_LEVEL_")
}

func (c *collector) use(s metricSink, sample *capsulev1.SampleResponse) {
	m := sample.GetMachine().GetUse()
	s.gauge(descCPUs, float64(sample.GetMachine().GetCpus()))
	s.counter(descCPU, m.GetCpu().AsDuration().Seconds())
	s.gauge(descMemory, float64(m.GetMemoryLimit()))
	s.gauge(descUsed, float64(m.GetMemory()))
	s.counter(descRead, float64(m.GetIoRead()))
	s.counter(descWritten, float64(m.GetIoWritten()))
	s.counter(descReceived, float64(m.GetNetReceived()))
	s.counter(descSent, float64(m.GetNetSent()))
	for _, w := range sample.GetWorkloads() {
		name, kind, u := w.GetName(), w.GetKind(), w.GetUse()
		s.gauge(descRunning, truth(w.GetRunningGeneration() != 0), name, kind)
		if w.GetCpusLimit() > 0 {
			s.gauge(descWCPULimit, float64(w.GetCpusLimit())/1000, name, kind)
		}
		if u == nil {
			continue
		}
		s.counter(descWCPU, u.GetCpu().AsDuration().Seconds(), name, kind)
		s.gauge(descWMemory, float64(u.GetMemory()), name, kind)
		if u.GetMemoryLimit() > 0 {
			s.gauge(descWMemoryLimit, float64(u.GetMemoryLimit()), name, kind)
		}
		s.gauge(descWPIDs, float64(u.GetPids()), name, kind)
		s.counter(descWRead, float64(u.GetIoRead()), name, kind)
		s.counter(descWWritten, float64(u.GetIoWritten()), name, kind)
		if u.NetReceived != nil {
			s.counter(descWReceived, float64(u.GetNetReceived()), name, kind)
			s.counter(descWSent, float64(u.GetNetSent()), name, kind)
		}
	}
}

// declared tells of what the store knows.
func (c *collector) declared(s metricSink) {
	if newest, err := c.Store.NewestEvent(); err == nil {
		s.counter(descEvents, float64(newest))
	}
	objs, err := c.Store.List("")
	if err != nil {
		c.Log.Warn("metrics", "error", err)
		return
	}
	for _, obj := range objs {
		switch obj.GetKind().(type) {
		case *capsulev1.Object_Workload:
			s.workload(obj)
		case *capsulev1.Object_Volume:
			s.volume(obj)
		}
	}
}

func (s metricSink) workload(obj *capsulev1.Object) {
	name, kind, status := obj.GetMeta().GetName(), obj.GetMeta().GetKind(), obj.GetWorkload().GetStatus()
	phase := status.GetPhase()
	if phase == capsulev1.Phase_PHASE_UNSPECIFIED {
		phase = capsulev1.Phase_PHASE_PENDING
	}
	s.word(descState, int32(phase), capsulev1.Phase_name, "PHASE_", name, kind)
	s.counter(descRestarts, float64(status.GetRestarts()), name, kind)
	if h := status.GetHealth(); h != capsulev1.HealthState_HEALTH_STATE_UNSPECIFIED {
		s.word(descHealth, int32(h), capsulev1.HealthState_name, "HEALTH_STATE_", name, kind)
	}
}

func (s metricSink) volume(obj *capsulev1.Object) {
	name, status := obj.GetMeta().GetName(), obj.GetVolume().GetStatus()
	phase := status.GetPhase()
	if phase == capsulev1.VolumePhase_VOLUME_PHASE_UNSPECIFIED {
		phase = capsulev1.VolumePhase_VOLUME_PHASE_PENDING
	}
	s.gauge(descVolume, float64(status.GetSize()), name)
	s.gauge(descVolumeUsed, float64(status.GetUsed()), name)
	s.word(descVolumeState, int32(phase), capsulev1.VolumePhase_name, "VOLUME_PHASE_", name)
}
