package microvm

import (
	"fmt"
	"net"
	"strings"

	"capsule/internal/qemu"
	"capsule/internal/workload"
)

// slotsMax is how many virtio devices the machine takes without ACPI
// (docs/decisions/0014-microvms.md). QEMU refuses one more.
const slotsMax = 8

// slotsFixed are those that every machine has: image, disk, lines, random numbers.
const slotsFixed = 4

// directMax is how many volumes are virtio devices by themselves: what is left
// beside vsock and card. Where there are more, all are disks of one SCSI host,
// which takes a single slot. That is more code that a guest can reach, so that it
// is only there when needed.
const directMax = slotsMax - slotsFixed - 2

// translationMiB is what TCG may keep of translated code; unbidden it takes up to
// a GiB, beyond what the machine's cgroup allows.
const translationMiB = 64

// Names of the lines, in the guest and in QEMU's events.
const (
	stdoutPort = "stdout"
	stderrPort = "stderr"
	agentPort  = "agent"
)

// contextBase is added to a machine's number for the address of its vsock.
const contextBase = 1000

// contextID is the address of a machine's vsock.
func contextID(number int) uint32 { return uint32(contextBase + number) } //nolint:gosec // at most numberMax

// machine is all that QEMU is told. Numbers are those of files that it inherits.
type machine struct {
	Program   string // as seen in the jail
	Name      string
	MemoryMiB int64
	VCPUs     int
	KVM       bool
	Kernel    string
	Initramfs string

	Image   []int // of imageDisk
	Disk    int
	Volumes []volumeDisk
	IO      workload.IO // of all disks together

	Stdout, Stderr, Serial int // connected sockets
	QMP                    int // listening socket

	CID   uint32 // of the vsock, whose file is VSock; 0 has the line Agent instead
	VSock int
	Agent int // listening socket

	MAC net.HardwareAddr // of the card, whose file is Tap; nil is without
	Tap int
}

// volumeDisk is a further disk, which the guest knows by volumeSerial.
type volumeDisk struct {
	File     int
	ReadOnly bool
	Block    bool // it is a block device of the capsule
}

// volumeSerial names the disk of a volume; the first has number 0.
func volumeSerial(i int) string { return fmt.Sprintf("vol%d", i+1) }

// layers are the partitions of the image's disk.
func (m machine) layers() int { return len(m.Image) - imageFiles }

// scsi tells whether the volumes are disks of a SCSI host.
func (m machine) scsi() bool { return len(m.Volumes) > directMax }

// slots are the virtio devices that the machine takes.
func (m machine) slots() int {
	n := slotsFixed
	if m.scsi() {
		n++
	} else {
		n += len(m.Volumes)
	}
	if m.CID != 0 {
		n++
	}
	if m.MAC != nil {
		n++
	}
	return n
}

// arguments are QEMU's command line. The machine stands still until it is told
// to go on, so that nobody misses what happens.
func (m machine) arguments() []string {
	args := []string{
		m.Program, "-name", "guest=" + m.Name,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", "microvm,acpi=off,rtc=on,isa-serial=on,dump-guest-core=off", "-rtc", "base=utc",
		"-m", fmt.Sprintf("%dM", m.MemoryMiB), "-smp", fmt.Sprint(m.VCPUs),
	}
	args = append(args, m.processor()...)
	args = append(args, "-kernel", m.Kernel, "-initrd", m.Initramfs, "-append", m.kernelLine())
	args = append(args, m.disks()...)
	args = append(args, m.lines()...)
	args = append(args, "-object", "rng-builtin,id=rng", "-device", "virtio-rng-device,rng=rng")
	if m.MAC != nil {
		args = append(args, "-netdev", fmt.Sprintf("tap,id=net,fd=%d", m.Tap), "-device", "virtio-net-device,netdev=net,mac="+m.MAC.String())
	}
	return args
}

// processor is that of the machine below with KVM, else an emulated one.
func (m machine) processor() []string {
	if m.KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", fmt.Sprintf("tcg,tb-size=%d,thread=multi", translationMiB), "-cpu", qemu.EmulatedCPU}
}

// emulatedLine is for the kernel on an emulated processor. It need not measure
// that, nor let others settle before they start; its clock is the one of the
// capsule, and translated code has no use for what wards off faults of silicon.
const emulatedLine = " lpj=10000000 cpu_init_udelay=0 tsc=reliable mitigations=off"

func (m machine) kernelLine() string {
	channel, more := Port, ""
	if m.CID != 0 {
		channel = VSock
	}
	if !m.KVM {
		more = emulatedLine
	}
	return "quiet capsule.channel=" + channel + more
}

func (m machine) disks() []string {
	var args []string
	for _, file := range m.Image {
		args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%[1]d", file))
	}
	args = append(args, m.throttleGroup()...)
	args = append(args,
		"-blockdev", fmt.Sprintf("driver=file,node-name=image-file,read-only=on,filename=%s", fdPath(m.Image[0])),
		"-blockdev", fmt.Sprintf("driver=vmdk,node-name=%s,read-only=on,file=image-file", m.source("image")))
	args = append(args, m.throttled("image", "read-only=on")...)
	args = append(args, "-device", "virtio-blk-device,drive=image,serial=image,rerror=report")
	args = append(args, m.rawDisk("disk", volumeDisk{File: m.Disk})...)
	args = append(args, "-device", "virtio-blk-device,"+disk("disk"))
	if m.scsi() {
		args = append(args, "-device", "virtio-scsi-device,id=volumes")
	}
	for i, v := range m.Volumes {
		name := volumeSerial(i)
		device := "virtio-blk-device,"
		if m.scsi() {
			device = fmt.Sprintf("scsi-hd,bus=volumes.0,channel=0,scsi-id=0,lun=%d,", i)
		}
		args = append(args, m.rawDisk(name, v)...)
		args = append(args, "-device", device+disk(name))
	}
	return args
}

// disk is what the guest sees of a raw disk, by either bus. Its flushes reach the
// capsule's disk. A write that the capsule has no room for is an error for the
// guest: QEMU would stop the machine unbidden.
func disk(name string) string {
	return fmt.Sprintf("drive=%s,serial=%[1]s,write-cache=on,werror=report,rerror=report", name)
}

// throttleName is the group that all disks are in whose traffic is limited together.
const throttleName = "throttle"

// throttleGroup makes it. The bounds are QEMU's and not its cgroup's: what a guest may
// not write yet waits in the guest, where nobody else waits for it, and QEMU can be
// ended at once (docs/decisions/0024-limits.md).
func (m machine) throttleGroup() []string {
	if m.IO == (workload.IO{}) {
		return nil
	}
	var limits []string
	for _, f := range []struct {
		name string
		n    int64
	}{
		{"bps-read", m.IO.ReadBytes}, {"bps-write", m.IO.WriteBytes},
		{"iops-read", m.IO.ReadOperations}, {"iops-write", m.IO.WriteOperations},
	} {
		if f.n > 0 {
			limits = append(limits, fmt.Sprintf("%q:%d", f.name, f.n))
		}
	}
	// Its other form holds no limits.
	return []string{"-object", fmt.Sprintf(`{"qom-type":"throttle-group","id":%q,"limits":{%s}}`, throttleName, strings.Join(limits, ","))}
}

// source is the node with a disk's content. Devices are given the one that has the
// disk's name, which limits the traffic when there are limits.
func (m machine) source(name string) string {
	if m.IO == (workload.IO{}) {
		return name
	}
	return name + "-source"
}

// throttled puts the group between a disk's content and its device.
func (m machine) throttled(name, access string) []string {
	if m.IO == (workload.IO{}) {
		return nil
	}
	return []string{"-blockdev", fmt.Sprintf("driver=throttle,node-name=%s,throttle-group=%s,%s,file=%s", name, throttleName, access, m.source(name))}
}

// rawDisk is what a disk's content is in, a file or a block device. What the guest
// gives back of it the capsule gets. Of a file, memory caches between the guest's
// flushes. Of a block device the guest's own cache is enough: past ours, a write
// that finds no room fails as such and not at a later flush, and the machine's
// memory limit doesn't count the content.
func (m machine) rawDisk(name string, d volumeDisk) []string {
	driver, access := "file", "read-only=off"
	if d.ReadOnly {
		access = "read-only=on"
	}
	more := ""
	if d.Block {
		driver, more = "host_device", ",cache.direct=on"
	}
	return append([]string{
		"-add-fd", fmt.Sprintf("fd=%d,set=%[1]d", d.File),
		"-blockdev", fmt.Sprintf("driver=%s,node-name=%s-file,%s,discard=unmap%s,filename=%s", driver, name, access, more, fdPath(d.File)),
		"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,%s,discard=unmap%s,file=%s-file", m.source(name), access, more, name),
	}, m.throttled(name, access+",discard=unmap")...)
}

// fdPath is how QEMU opens an inherited file.
func fdPath(file int) string { return fmt.Sprintf("/dev/fdset/%d", file) }

// lines are what goes in and out beside disks and network.
func (m machine) lines() []string {
	args := []string{
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", m.QMP), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=serial,fd=%d", m.Serial), "-serial", "chardev:serial",
		"-device", "virtio-serial-device,max_ports=4",
	}
	args = append(args, port(1, stdoutPort, fmt.Sprintf("fd=%d", m.Stdout))...)
	args = append(args, port(2, stderrPort, fmt.Sprintf("fd=%d", m.Stderr))...)
	if m.CID != 0 {
		return append(args, "-device", fmt.Sprintf("vhost-vsock-device,guest-cid=%d,vhostfd=%d", m.CID, m.VSock))
	}
	return append(args, port(3, agentPort, fmt.Sprintf("fd=%d,server=on,wait=off", m.Agent))...)
}

// port is a line that the guest finds by its name. Number 0 is for consoles.
func port(number int, name, socket string) []string {
	return []string{
		"-chardev", fmt.Sprintf("socket,id=%s,%s", name, socket),
		"-device", fmt.Sprintf("virtserialport,id=%s,chardev=%[1]s,name=capsule.%[1]s,nr=%[2]d", name, number),
	}
}
