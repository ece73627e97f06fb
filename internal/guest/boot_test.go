package guest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	guestv1 "capsule/api/capsule/guest/v1"
	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/guest/channel"
	"capsule/internal/imagetest"
	"capsule/internal/qemu"
)

// wanted names the variable that asks for tests in guests, which take minutes.
const wanted = "CAPSULE_TEST_GUEST"

// needGuest gives the guest's kernel, or skips.
func needGuest(t *testing.T) (kernel string) {
	t.Helper()
	if os.Getenv(wanted) == "" {
		t.Skipf("SKIPPED, boots guests: run it with %s=1", wanted)
	}
	kernel, err := filepath.Abs("../../build/guest/vmlinux")
	if err == nil {
		_, err = os.Stat(kernel)
	}
	for _, program := range []string{"qemu-system-x86_64", "mkfs.erofs", "mkfs.ext4", "go"} {
		if err == nil {
			_, err = exec.LookPath(program)
		}
	}
	if err != nil {
		t.Fatalf("no guest for the test; run make deps image: %v", err)
	}
	return kernel
}

// A machine is a guest in QEMU.
type machine struct {
	client      guestv1.GuestServiceClient
	socket      string
	serial      *imagetest.Output
	out, errOut imagetest.Output
	exited      chan error
	dir         string
	loggers     []net.Conn // of stdout and stderr

	mu   sync.Mutex
	conn net.Conn // the last one to the agent
}

const cardAddress = "52:54:00:12:34:56"

// options of a machine; what is missing is the usual.
type options struct {
	channel string
	memory  string        // MiB
	disks   []string      // more of them, serial=file
	listen  chan struct{} // the logger of stdout reads once it is closed
}

// bootGuest starts a guest whose image is made of the layers.
func bootGuest(t *testing.T, layers []*imagetest.Layer, o options) *machine {
	t.Helper()
	if o.channel == "" {
		o.channel = "port"
	}
	if o.memory == "" {
		o.memory = "256"
	}
	if o.listen == nil {
		o.listen = make(chan struct{})
		close(o.listen)
	}
	kernel := needGuest(t)
	m := &machine{dir: t.TempDir(), serial: &imagetest.Output{}, exited: make(chan error, 1)}
	m.socket = filepath.Join(m.dir, "agent")
	image, initramfs := filepath.Join(m.dir, "image"), filepath.Join(m.dir, "initramfs")
	writeImage(t, image, layers)
	writeInitramfs(t, initramfs)
	args := []string{
		"-M", "microvm,acpi=off,rtc=on,isa-serial=on,accel=tcg", "-cpu", qemu.EmulatedCPU, "-smp", "1", "-m", o.memory,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", kernel, "-initrd", initramfs, "-append", "console=ttyS0 reboot=t panic=-1 quiet capsule.channel=" + o.channel,
		"-device", "virtio-serial-device,max_ports=4",
		"-chardev", "socket,id=agent,path=" + m.socket + ",server=on,wait=off", "-device", "virtserialport,chardev=agent,nr=1,name=" + channel.PortName,
		"-netdev", "user,id=net,restrict=on", "-device", "virtio-net-device,netdev=net,mac=" + cardAddress,
	}
	disks := append([]string{imageSerial + "=" + image, diskSerial + "=" + newDisk(t, m.dir, "disk")}, o.disks...)
	for _, d := range disks {
		serial, file, _ := strings.Cut(d, "=")
		readOnly := "off"
		if serial == imageSerial {
			readOnly = "on"
		}
		args = append(args, "-drive", fmt.Sprintf("if=none,id=%s,file=%s,format=raw,discard=unmap,read-only=%s", serial, file, readOnly),
			"-device", fmt.Sprintf("virtio-blk-device,drive=%s,serial=%s", serial, serial))
	}
	cmd := exec.Command("qemu-system-x86_64", args...)
	for i, port := range []struct {
		name   string
		w      io.Writer
		listen chan struct{}
	}{{stdout, &m.out, o.listen}, {stderr, &m.errOut, nil}} {
		cmd.Args = append(cmd.Args, "-chardev", fmt.Sprintf("socket,id=log%d,fd=%d", i, 3+i), "-device", fmt.Sprintf("virtserialport,chardev=log%d,nr=%d,name=%s", i, 2+i, port.name))
		cmd.ExtraFiles = append(cmd.ExtraFiles, m.logger(t, port.w, port.listen))
	}
	cmd.Stdout, cmd.Stderr = m.serial, m.serial
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	ended := make(chan struct{})
	go func() { m.exited <- cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("serial log:\n%s", m.serial)
		}
	})
	m.client = newClient(t, func(ctx context.Context) (net.Conn, error) {
		conn, err := channel.DialPort(ctx, m.socket)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.conn = conn
		return conn, err
	})
	return m
}

// logger copies what QEMU sends to w and gives QEMU's end.
func (m *machine) logger(t *testing.T, w io.Writer, listen chan struct{}) *os.File {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	end := os.NewFile(uintptr(fds[0]), "log")
	ours, err := net.FileConn(end)
	end.Close()
	if err != nil {
		t.Fatal(err)
	}
	m.loggers = append(m.loggers, ours)
	go func() {
		if listen != nil {
			<-listen
		}
		_, _ = io.Copy(w, ours)
		ours.Close()
	}()
	return os.NewFile(uintptr(fds[1]), "log")
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func newDisk(t *testing.T, dir, name string, options ...string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	tool(t, "mkfs.ext4", append(append([]string{"-q", "-F"}, options...), file)...)
	return file
}

// writeImage makes a disk with a partition of erofs for each layer.
func writeImage(t *testing.T, file string, layers []*imagetest.Layer) {
	t.Helper()
	const sector, align = 512, 1 << 20
	var table gpt.Table
	at := int64(align)
	disk, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	for i, layer := range layers {
		part := file + strconv.Itoa(i)
		tool(t, "mkfs.erofs", "--quiet", part, unpack(t, layer))
		data, err := os.ReadFile(part)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := disk.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
		end := (at + int64(len(data)) + align - 1) / align * align
		table.Partitions = append(table.Partitions, &gpt.Partition{Index: i + 1, Start: uint64(at / sector), End: uint64(end/sector) - 1, Type: gpt.LinuxFilesystem, Name: fmt.Sprint(i)})
		at = end
	}
	if err := disk.Truncate(at + align); err != nil {
		t.Fatal(err)
	}
	table.LogicalSectorSize, table.PhysicalSectorSize, table.ProtectiveMBR = sector, sector, true
	if err := table.Write(disk, at+align); err != nil {
		t.Fatal(err)
	}
}

// writeInitramfs builds the agent and packs it.
func writeInitramfs(t *testing.T, file string) {
	t.Helper()
	agent := file + ".agent"
	build := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", agent, "capsule/cmd/capsule-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program, err := os.ReadFile(agent)
	if err != nil {
		t.Fatal(err)
	}
	var cpio bytes.Buffer
	entry := func(name string, mode, major, minor int, data []byte) {
		fmt.Fprintf(&cpio, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", 0, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
		pad := func() { cpio.Write(make([]byte, (4-cpio.Len()%4)%4)) }
		pad()
		cpio.Write(data)
		pad()
	}
	entry("dev", unix.S_IFDIR|0o755, 0, 0, nil)
	entry("dev/console", unix.S_IFCHR|0o600, 5, 1, nil)
	entry("dev/null", unix.S_IFCHR|0o666, 1, 3, nil)
	entry("init", unix.S_IFREG|0o755, 0, 0, program)
	entry("TRAILER!!!", 0, 0, 0, nil)
	if err := os.WriteFile(file, cpio.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// request runs the image of the tests.
func request(layers int, args ...string) *guestv1.RunRequest {
	return &guestv1.RunRequest{
		Layers: uint32(layers), Args: append([]string{"/payload"}, args...), Env: []string{"A=1"}, User: "app", Hostname: "web",
		ResolvConf: []byte("nameserver 172.30.0.1\n"), Hosts: []byte("127.0.0.1 localhost\n"), Time: timestamppb.Now(),
	}
}

// powerOff ends the guest, and QEMU by it.
func (m *machine) powerOff(t *testing.T) {
	t.Helper()
	_, _ = m.client.PowerOff(t.Context(), &guestv1.PowerOffRequest{}) // its answer may be lost
	select {
	case err := <-m.exited:
		if err != nil {
			t.Errorf("QEMU ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("the guest does not power off")
	}
}

// One guest, with all that a payload can ask for.
func TestGuest(t *testing.T) {
	needGuest(t)
	layers := []*imagetest.Layer{imagetest.PayloadLayer(t)}
	for i := range 40 { // more than a page of options would name
		layers = append(layers, imagetest.NewLayer().Dir("layers", 0o755).
			File(fmt.Sprintf("layers/%d", i), 0o644, "").File("layers/last", 0o644, fmt.Sprint(i)))
	}
	dir := t.TempDir()
	full := newDisk(t, dir, "full", "-d", unpack(t, imagetest.NewLayer().Dir("data", 0o755).File("data/f", 0o644, "data\n").File("hidden", 0o644, "")))
	m := bootGuest(t, layers, options{disks: []string{"vol1=" + newDisk(t, dir, "empty"), "vol2=" + full}})
	began := time.Now()
	if _, err := m.client.State(t.Context(), &guestv1.StateRequest{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("the agent answered %v after QEMU's start; %s", time.Since(began), lastLine(m.serial.String()))
	req := request(len(layers), "print", "ready", "then", "printerr", "oops", "then", "sleep")
	req.Cwd, req.Memory, req.Pids = "/", 64<<20, 200
	req.Volumes = []*guestv1.Volume{{Serial: "vol1", Path: "/new/rw"}, {Serial: "vol2", Path: "/ro", Folder: "data", ReadOnly: true}}
	card, err := net.ParseMAC(cardAddress)
	if err != nil {
		t.Fatal(err)
	}
	req.Interface = &guestv1.Interface{HardwareAddress: card, Mtu: 1400, Addresses: []string{"172.30.0.5/16", "fd00::5/64"}, Gateways: []string{"172.30.0.1", "fd00::1"}}
	began = time.Now()
	if _, err := m.client.Run(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	t.Logf("the payload of %d layers started in %v", len(layers), time.Since(began))
	has(t, &m.out, "ready\n")
	has(t, &m.errOut, "oops\n")
	t.Run("files", m.files)
	t.Run("network", m.network)
	t.Run("limits", m.limits)
	t.Run("commands", func(t *testing.T) { commands(t, m.client) })
	t.Run("copies", func(t *testing.T) { copies(t, m.client) })
	t.Run("update", m.update)
	t.Run("grow", m.grow)
	t.Run("freeze", m.freeze)
	t.Run("another caller", m.another)
	t.Run("end", func(t *testing.T) { commandEnds(t, m.client) })
	if e := end(t, m.client); e.GetCode() != 137 || e.GetOom() || e.GetUnmountError() != "" {
		t.Errorf("ended with %v", e)
	}
	m.powerOff(t)
	if text := m.serial.String(); strings.Contains(text, "panic") {
		t.Errorf("serial log: %s", text)
	}
	// Unmounted: nothing is left in the journals.
	for _, file := range []string{filepath.Join(m.dir, "disk"), filepath.Join(dir, "empty"), full} {
		tool(t, "e2fsck", "-fn", file)
	}
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// as runs a verb as root and gives what it printed.
func (m *machine) as(t *testing.T, verbs ...string) string {
	t.Helper()
	start := payloadVerb(verbs...)
	start.User = "root"
	code, out, errOut := begin(t, m.client, start).finish()
	if code != 0 {
		t.Errorf("%v: code %d, %s", verbs, code, errOut)
	}
	return out
}

func (m *machine) files(t *testing.T) {
	if out := m.as(t, "cat", "/layers/last", "/ro/f", "/etc/hosts", "/etc/resolv.conf", "then", "print", "", "then", "ls", "/ro", "then", "ls", "/layers"); !strings.HasPrefix(out, "39data\n127.0.0.1 localhost\nnameserver 172.30.0.1\n") || strings.Count(out, "\n") != 4+1+41 {
		t.Errorf("got %q", out)
	}
	m.as(t, "write", "/new/rw/g", "x", "then", "write", "/layers/0", "y")
	if code, _, errOut := begin(t, m.client, &capsulev1.ExecStart{Command: []string{"/payload", "write", "/ro/g", "x"}, User: "root"}).finish(); code != 1 || !strings.Contains(errOut, "read-only") {
		t.Errorf("code %d, %q", code, errOut)
	}
	mounts := m.as(t, "cat", "/proc/self/mountinfo")
	for _, want := range []string{" / rw,nodev,relatime - overlay", " /new/rw rw,nodev,noatime - ext4", "/data /ro ro,nodev,noatime - ext4", " /proc/sys ro"} {
		if !strings.Contains(mounts, want) {
			t.Errorf("no %q in\n%s", want, mounts)
		}
	}
	if strings.Contains(mounts, " /run/") {
		t.Errorf("the agent's mounts are in reach:\n%s", mounts)
	}
}

func (m *machine) network(t *testing.T) {
	if out := m.as(t, "cat", "/sys/class/net/eth0/mtu", "/sys/class/net/eth0/address", "/sys/class/net/eth0/carrier"); out != "1400\n"+cardAddress+"\n1\n" {
		t.Errorf("card %q", out)
	}
	routes := m.as(t, "cat", "/proc/net/route", "/proc/net/ipv6_route", "/proc/net/if_inet6")
	for _, want := range []string{"eth0\t00000000\t01001EAC", "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001", "fd000000000000000000000000000005"} {
		if !strings.Contains(routes, want) {
			t.Errorf("no %q in\n%s", want, routes)
		}
	}
	// Any user takes any port.
	if code, out, errOut := begin(t, m.client, payloadVerb("bind", "127.0.0.1:80", "then", "bind", "[fd00::5]:81")).finish(); code != 0 {
		t.Errorf("code %d, %q, %q", code, out, errOut)
	}
	if out := m.as(t, "cat", "/proc/sys/net/ipv4/ping_group_range"); strings.Join(strings.Fields(out), " ") != "0 2147483647" {
		t.Errorf("ping is for %q", out)
	}
}

func (m *machine) limits(t *testing.T) {
	if out := m.as(t, "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/memory.oom.group"); out != "67108864\n200\n1\n" {
		t.Errorf("limits %q", out)
	}
	r, err := m.client.Stats(t.Context(), &guestv1.StatsRequest{})
	if err != nil || r.GetPids() == 0 || r.GetMemory() == 0 || r.GetMemory() > 64<<20 || r.GetCpuUs() == 0 {
		t.Errorf("stats %v, %v", r, err)
	}
	// What QEMU does wrong, no kernel is to do with it (qemu.EmulatedCPU).
	if out := m.as(t, "cat", "/proc/cpuinfo"); !strings.Contains(out, " cx8 ") || strings.Contains(out, " cx16 ") || strings.Contains(out, " erms ") {
		t.Errorf("processor %s", out)
	}
	if out := m.as(t, "cat", "/proc/self/limits"); !strings.Contains(out, fmt.Sprintf(" %-20d files", limits[0].Hard)) { // Go raises its own soft limit
		t.Errorf("limits %s", out)
	}
}

func (m *machine) update(t *testing.T) {
	// An emulated guest falls behind on a busy computer: it is set right first.
	if _, err := m.client.Update(t.Context(), &guestv1.UpdateRequest{Time: timestamppb.Now()}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	r, err := m.client.Update(t.Context(), &guestv1.UpdateRequest{Time: timestamppb.New(now.Add(time.Hour)), Hosts: []byte("h\n")})
	if err != nil || imagetest.Beside(now, r.GetTime().AsTime(), time.Now()) > 2*time.Second {
		t.Errorf("its time was %v, %v; ours %v", r.GetTime().AsTime(), err, now)
	}
	if out := m.as(t, "cat", "/etc/hosts", "/etc/resolv.conf"); out != "h\nnameserver 172.30.0.1\n" {
		t.Errorf("files %q", out)
	}
	r, err = m.client.Update(t.Context(), &guestv1.UpdateRequest{Time: timestamppb.Now()})
	if off := time.Until(r.GetTime().AsTime()); err != nil || off < 59*time.Minute {
		t.Errorf("an hour later it was %v, %v", off, err)
	}
	now = time.Now()
	r, err = m.client.Update(t.Context(), &guestv1.UpdateRequest{})
	if off := imagetest.Beside(now, r.GetTime().AsTime(), time.Now()); err != nil || off > 2*time.Second {
		t.Errorf("set right, it is off by %v, %v", off, err)
	}
}

// What can't grow is told; how a volume grows is tested with the driver.
func (m *machine) grow(t *testing.T) {
	for serial, want := range map[string]codes.Code{"vol1": codes.OK, "vol2": codes.FailedPrecondition, "vol3": codes.NotFound, diskSerial: codes.NotFound, "": codes.NotFound} {
		if _, err := m.client.Grow(t.Context(), &guestv1.GrowRequest{Serial: serial, Size: 64 << 20}); status.Code(err) != want {
			t.Errorf("grow %q: %v, want %v", serial, err, want)
		}
	}
	if _, err := m.client.Grow(t.Context(), &guestv1.GrowRequest{Serial: "vol1", Size: 65 << 20}); err == nil {
		t.Error("grown to what the disk has not")
	}
}

func (m *machine) freeze(t *testing.T) {
	for _, limit := range []int64{0, 60_001} {
		if _, err := m.client.Freeze(t.Context(), &guestv1.FreezeRequest{LimitMs: limit}); err == nil {
			t.Errorf("froze for %d ms", limit)
		}
	}
	written := func(limit int64) chan time.Duration {
		took, began := make(chan time.Duration, 1), time.Now()
		if _, err := m.client.Freeze(t.Context(), &guestv1.FreezeRequest{LimitMs: limit}); err != nil {
			t.Fatal(err)
		}
		go func() {
			m.as(t, "write", "/new/rw/frozen", "x", "then", "write", "/frozen", "x")
			took <- time.Since(began)
		}()
		return took
	}
	if took := <-written(3000); took < time.Second {
		t.Errorf("a write took %v of a freeze of 3 s", took)
	}
	took := written(60_000)
	if _, err := m.client.Thaw(t.Context(), &guestv1.ThawRequest{}); err != nil {
		t.Fatal(err)
	}
	if took := <-took; took > 30*time.Second {
		t.Errorf("thawed, a write took %v", took)
	}
	// Left frozen: the end of the payload must not wait.
	if _, err := m.client.Freeze(t.Context(), &guestv1.FreezeRequest{LimitMs: 60_000}); err != nil {
		t.Fatal(err)
	}
}

// another takes the channel's place as a new daemon does.
func (m *machine) another(t *testing.T) {
	x := begin(t, m.client, payloadVerb("trap", "0"))
	if err := x.until("ready"); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	m.conn.Close()
	m.mu.Unlock()
	if err := x.until(""); status.Code(err) != codes.Unavailable {
		t.Errorf("a command of the one that left: %v", err)
	}
	began := time.Now()
	for deadline := began.Add(patience); len(processes(t, m.client)) > 3; { // with a zombie that an earlier test left
		if time.Now().After(deadline) {
			t.Fatal("the command goes on")
		}
	}
	t.Logf("another caller was served after %v", time.Since(began))
}

// oneLayer is the image with nothing but the payload.
func oneLayer(t *testing.T) []*imagetest.Layer {
	return []*imagetest.Layer{imagetest.PayloadLayer(t)}
}

// A payload has what its limit promises, in a machine that is 64 MiB larger, and
// no more.
func TestGuestMemory(t *testing.T) {
	needGuest(t)
	m := bootGuest(t, oneLayer(t), options{memory: "128"})
	req := request(1, "allocate", "52", "then", "print", "fits", "then", "allocate", "20", "then", "print", "too much")
	req.Memory = 64 << 20
	if _, err := m.client.Run(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	e := end(t, m.client)
	if e.GetCode() != 137 || !e.GetOom() || e.GetUnmountError() != "" {
		t.Errorf("ended with %v", e)
	}
	has(t, &m.out, "fits\n") // the logger may be a moment behind
	if out := m.out.String(); strings.Contains(out, "too much") {
		t.Errorf("printed %q", out)
	}
	// The end is kept for who asks.
	if again := end(t, m.client); again.GetCode() != 137 {
		t.Errorf("asked again: %v", again)
	}
	r, err := m.client.Stop(t.Context(), &guestv1.StopRequest{Signal: int32(unix.SIGTERM), GraceMs: 60_000})
	if err != nil || r.GetEnding().GetCode() != 137 {
		t.Errorf("stopped: %v, %v", r, err)
	}
	if _, err := m.client.Run(t.Context(), req); status.Code(err) != codes.AlreadyExists {
		t.Errorf("run again: %v", err)
	}
	m.powerOff(t)
}

// What can never run is refused, and leaves disks that are whole.
func TestGuestRefuses(t *testing.T) {
	needGuest(t)
	for text, change := range map[string]func(*guestv1.RunRequest){
		`"nosuch"`:   func(r *guestv1.RunRequest) { r.Args = []string{"nosuch"} },
		`"ghost"`:    func(r *guestv1.RunRequest) { r.User = "ghost" },
		"128 layers": func(r *guestv1.RunRequest) { r.Layers = 128 },
	} {
		m := bootGuest(t, oneLayer(t), options{})
		req := request(1)
		change(req)
		_, err := m.client.Run(t.Context(), req)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), text) {
			t.Errorf("want %s: %v", text, err)
		}
		m.powerOff(t)
		tool(t, "e2fsck", "-fn", filepath.Join(m.dir, "disk"))
	}
}

// Nothing of the output is lost to a logger that is slow, and one that is gone
// does not hold the payload.
func TestGuestOutput(t *testing.T) {
	needGuest(t)
	const n = 200_000
	listen := make(chan struct{})
	m := bootGuest(t, oneLayer(t), options{listen: listen})
	if _, err := m.client.Run(t.Context(), request(1, "lines", fmt.Sprint(n))); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(quietMax+time.Second, func() { close(listen) })
	if e := end(t, m.client); e.GetCode() != 0 || e.GetUnmountError() != "" {
		t.Errorf("ended with %v", e)
	}
	has(t, &m.out, fmt.Sprintf("line %d\n", n-1))
	if got := strings.Count(m.out.String(), "\n"); got != n {
		t.Errorf("%d lines of %d", got, n)
	}
	m.powerOff(t)

	m = bootGuest(t, oneLayer(t), options{})
	if _, err := m.client.Run(t.Context(), request(1, "print", "ready", "then", "sleep", "2s", "then", "bytes", "1000000", "then", "printerr", "done")); err != nil {
		t.Fatal(err)
	}
	has(t, &m.out, "ready")
	m.loggers[0].Close()
	if e := end(t, m.client); e.GetCode() != 0 {
		t.Errorf("without a logger it ended with %v", e)
	}
	has(t, &m.errOut, "done\n")
	m.powerOff(t)
}

// On vsock the agent gets ready too; nobody can call it here.
func TestGuestVsock(t *testing.T) {
	needGuest(t)
	m := bootGuest(t, oneLayer(t), options{channel: "vsock"})
	has(t, m.serial, "ready after")
	m = bootGuest(t, oneLayer(t), options{channel: "pigeon"})
	has(t, m.serial, "capsule.channel=pigeon")
	select {
	case err := <-m.exited:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("a guest that can't serve does not end")
	}
}
