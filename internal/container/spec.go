package container

import (
	"path"
	"strconv"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"capsule/internal/process"
	"capsule/internal/workload"
)

const (
	// groupAnnotation makes all containers with the same value share a shim.
	groupAnnotation = "io.containerd.runc.v2.group"
	groupName       = "capsule"

	cpuPeriod   = 100_000 // microseconds
	cpuQuotaMin = 1000    // microseconds, the kernel's least

	// Workloads go before the capsule's own processes, and first those that may take
	// what they like: many small processes of one must not have another killed that
	// keeps within its limit.
	oomLimited   = 200
	oomUnlimited = 800
)

// spec is the OCI runtime spec of an instance.
func (d *Driver) spec(in workload.Instance, who process.Account) *specs.Spec {
	s := &specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: "rootfs"},
		Hostname:    in.Network.Hostname,
		Process:     specProcess(in, who),
		Mounts:      mounts(in),
		Annotations: d.annotations(in),
		Linux: &specs.Linux{
			CgroupsPath:   path.Join(d.opts.Cgroup, in.Name),
			Namespaces:    namespaces(in.Network),
			Resources:     resources(in.Resources),
			Sysctl:        sysctls(in.Network),
			MaskedPaths:   process.MaskedPaths,
			ReadonlyPaths: process.ReadonlyPaths,
		},
	}
	s.Linux.Seccomp = seccomp.DefaultProfile(s)
	return s
}

func specProcess(in workload.Instance, who process.Account) *specs.Process {
	score := oomLimited
	if in.Resources.MemoryBytes == 0 {
		score = oomUnlimited
	}
	cwd := in.Cwd
	if cwd == "" {
		cwd = "/"
	}
	return &specs.Process{
		Args:            in.Args,
		Env:             process.Environment(in.Env, who),
		Cwd:             cwd,
		User:            specUser(who),
		Capabilities:    capabilitiesOf(who),
		NoNewPrivileges: true,
		OOMScoreAdj:     &score,
		Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: process.FilesMax, Soft: process.FilesDefault}},
	}
}

func specUser(who process.Account) specs.User {
	return specs.User{UID: who.UID, GID: who.GID, AdditionalGids: who.Groups}
}

// capabilitiesOf an account: only root has any in effect.
func capabilitiesOf(who process.Account) *specs.LinuxCapabilities {
	c := &specs.LinuxCapabilities{Bounding: process.Capabilities}
	if who.UID == 0 {
		c.Permitted, c.Effective = process.Capabilities, process.Capabilities
	}
	return c
}

func namespaces(n workload.Network) []specs.LinuxNamespace {
	ns := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
		{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
	}
	if n.NetNS != "" {
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: n.NetNS})
	}
	return ns
}

func sysctls(n workload.Network) map[string]string {
	if n.NetNS == "" {
		return nil
	}
	return process.NetworkSysctls()
}

func resources(r workload.Resources) *specs.LinuxResources {
	pids := r.PIDs
	if pids <= 0 {
		pids = process.PIDsDefault
	}
	res := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		Pids:    &specs.LinuxPids{Limit: &pids},
		// All processes of a workload go together: half of one is no use.
		Unified: map[string]string{"memory.oom.group": "1"},
	}
	if r.MemoryBytes > 0 {
		limit := r.MemoryBytes
		res.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit} // together: no swap
	}
	if r.CPUMillis > 0 {
		period := uint64(cpuPeriod)
		quota := max(r.CPUMillis*cpuPeriod/1000, cpuQuotaMin)
		res.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	return res
}

func mounts(in workload.Instance) []specs.Mount {
	safe := func(options ...string) []string { return append([]string{"nosuid", "noexec", "nodev"}, options...) }
	ms := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: safe()},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: safe("mode=1777", "size="+strconv.Itoa(process.ShmBytes))},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: safe()},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: safe("ro")},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: safe("relatime", "ro")},
	}
	hosts := "rw" // its own
	if in.Network.Mode == "host" {
		hosts = "ro"
	}
	for _, file := range []struct{ source, path, mode string }{
		{in.Network.ResolvConf, "/etc/resolv.conf", "ro"}, {in.Network.Hosts, "/etc/hosts", hosts}, // others see the same
	} {
		if file.source != "" {
			ms = append(ms, specs.Mount{Destination: file.path, Type: "bind", Source: file.source, Options: []string{"bind", "rprivate", file.mode}})
		}
	}
	for _, m := range in.Mounts {
		if m.Source == "" { // until the start
			continue
		}
		mode := "rw"
		if m.ReadOnly {
			mode = "rro" // what is mounted below, too
		}
		ms = append(ms, specs.Mount{Destination: m.Path, Type: "bind", Source: m.Source, Options: []string{"rbind", "rprivate", mode}})
	}
	return ms
}
