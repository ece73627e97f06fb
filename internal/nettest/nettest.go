// Package nettest lets tests play with a whole network: it runs the test binary
// in a network and mount namespace of its own, so that the process is the
// machine, and makes further namespaces that are its neighbours. It needs root,
// and no program or file but the test binary.
package nettest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inside marks the process that lives in the namespaces.
const inside = "CAPSULE_NETTEST"

// Main is for TestMain: it runs the tests inside, or where that is not allowed,
// here, where Require skips.
func Main(m *testing.M) {
	if os.Getenv(inside) == "" && os.Getuid() == 0 {
		code, err := again()
		if err == nil {
			os.Exit(code)
		}
		fmt.Fprintln(os.Stderr, "nettest: no namespaces:", err)
	}
	if os.Getenv(inside) != "" {
		if err := enter(); err != nil {
			fmt.Fprintln(os.Stderr, "nettest:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// again runs this test binary with the same arguments in new namespaces.
func again() (int, error) {
	// The death signal is sent when the thread ends that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// Shows the links of whoever mounts it.
	// It is there already for the workers of a fuzz test.
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// Require skips the test outside of the namespaces.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("SKIPPED: needs root and network namespaces")
	}
}

// NS is a network namespace: another machine.
type NS struct {
	FD     netns.NsHandle
	Handle *netlink.Handle
}

// New makes one that lasts as long as the test, with its loopback up.
func New(t testing.TB) *NS {
	t.Helper()
	Require(t)
	ns := &NS{}
	must(t, onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		ns.FD, err = netns.GetFromPath("/proc/thread-self/ns/net")
		return err
	}))
	return ns.open(t)
}

// Open enters a pinned one.
func Open(t testing.TB, path string) *NS {
	t.Helper()
	fd, err := netns.GetFromPath(path)
	must(t, err)
	return (&NS{FD: fd}).open(t)
}

func (ns *NS) open(t testing.TB) *NS {
	t.Helper()
	h, err := netlink.NewHandleAt(ns.FD)
	must(t, err)
	ns.Handle = h
	t.Cleanup(func() {
		h.Close()
		ns.FD.Close()
	})
	lo, err := h.LinkByName("lo")
	must(t, err)
	must(t, h.LinkSetUp(lo))
	return ns
}

// Do calls fn on a thread of the namespace. Sockets that it opens stay there.
func (ns *NS) Do(t testing.TB, fn func() error) {
	t.Helper()
	must(t, ns.Try(fn))
}

// Try is Do with the error.
func (ns *NS) Try(fn func() error) error {
	if ns == nil {
		return fn()
	}
	return onThread(func() error {
		if err := unix.Setns(int(ns.FD), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return fn()
	})
}

// Sysctl writes below /proc/sys/net of the namespace.
func (ns *NS) Sysctl(t testing.TB, path, value string) {
	t.Helper()
	ns.Do(t, func() error { return os.WriteFile("/proc/sys/net/"+path, []byte(value), 0) })
}

// Cable connects a link of this machine with one of another, both up.
func Cable(t testing.TB, here string, other *NS, there string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = here
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerNamespace = there, netlink.NsFd(other.FD)
	must(t, netlink.LinkAdd(pair))
	t.Cleanup(func() {
		if l, err := netlink.LinkByName(here); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	other.Up(t, there)
	l, err := netlink.LinkByName(here)
	must(t, err)
	must(t, netlink.LinkSetUp(l))
}

func (ns *NS) handle() *netlink.Handle {
	if ns == nil {
		return &netlink.Handle{}
	}
	return ns.Handle
}

// Link finds a link; a nil namespace is this machine.
func (ns *NS) Link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := ns.handle().LinkByName(name)
	must(t, err)
	return l
}

// Up and Down pull and plug the cable at this end.
func (ns *NS) Up(t testing.TB, name string) {
	t.Helper()
	must(t, ns.handle().LinkSetUp(ns.Link(t, name)))
}

// Down is the other half of Up.
func (ns *NS) Down(t testing.TB, name string) {
	t.Helper()
	must(t, ns.handle().LinkSetDown(ns.Link(t, name)))
}

// Addr adds addresses that are usable at once.
func (ns *NS) Addr(t testing.TB, link string, prefixes ...string) {
	t.Helper()
	for _, p := range prefixes {
		a, err := netlink.ParseAddr(p)
		must(t, err)
		if netip.MustParsePrefix(p).Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		must(t, ns.handle().AddrReplace(ns.Link(t, link), a))
	}
}

// Route adds a route by a gateway.
func (ns *NS) Route(t testing.TB, dst, gateway string) {
	t.Helper()
	_, to, err := net.ParseCIDR(dst)
	must(t, err)
	must(t, ns.handle().RouteReplace(&netlink.Route{Dst: to, Gw: netip.MustParseAddr(gateway).AsSlice()}))
}

// patience is how much longer than on a quiet machine a thing may take: builds
// and other tests run beside it, and the processor may be an emulated one.
const patience = 5

// Eventually waits until ok, asking often, and fails with the last words. The
// limit is that of a quiet machine.
func Eventually(t testing.TB, limit time.Duration, ok func() error) {
	t.Helper()
	limit *= patience
	end := time.Now().Add(limit)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %s: %v", limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends
		done <- fn()
	}()
	return <-done
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
