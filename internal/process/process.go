// Package process holds what a program needs so that it starts the same way in
// a container and in a microVM: whom it runs as, whether the image has it, its
// environment, its rights and its limits. It starts nothing itself.
package process

// DefaultPath is where programs are looked up when nobody set PATH.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Limits of every workload.
const (
	PIDsDefault  = 4096     // processes, when the manifest sets no limit
	FilesMax     = 1 << 20  // open files of a process, that it may ask for
	FilesDefault = 1 << 16  // without asking: programs that close all that could be open stay quick
	ShmBytes     = 64 << 20 // size of /dev/shm
)

// Capabilities of root in an instance. Left out of what is common elsewhere:
// MKNOD, NET_RAW (ping works without) and AUDIT_WRITE.
var Capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
	"CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// MaskedPaths are not readable in an instance.
var MaskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
	"/sys/firmware",
}

// ReadonlyPaths are not writable in an instance.
var ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// NetworkSysctls let everybody bind any port and ping, in a network of one's own.
func NetworkSysctls() map[string]string {
	return map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "0",
		"net.ipv4.ping_group_range":           "0 2147483647",
	}
}
