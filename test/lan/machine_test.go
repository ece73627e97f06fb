//go:build linux && machine

package lan

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"capsule/internal/disk"
	"capsule/internal/imagetest"
	"capsule/internal/lab"
	"capsule/internal/nettest"
)

const (
	firstAddress = "192.168.70.50"
	laterAddress = "192.168.70.60"
	// renewAfter is T1 of the lease of 120 s that BOOT-02 names.
	renewAfter = 60 * time.Second
)

const web = `kind: Container
name: web
image: web:1
ports:
  - "8080:80"
`

// From a stick in a bare machine to a web page on it, by names alone: discover,
// claim, install, start from the disk, apply. The machine has two sockets for a
// network and a disk that is found before its own when it starts from there
// (BOOT-05). Then its router gives it another address (BOOT-02).
func TestBareMachine(t *testing.T) {
	l := newLaptop(t)
	dhcp := nettest.NewDHCP(nettest.Grant{
		Server: netip.MustParsePrefix(laptopAddress), Give: netip.MustParseAddr(firstAddress), DNS: netip.MustParseAddr("192.168.70.1"),
		Lease: 2 * renewAfter, Renew: renewAfter,
	})
	dhcp.Serve(t, nil, laptopLink)
	m := bareMachine(t)

	start(t, m)
	code := m.shown(t, `capsule claim: code=([0-9A-Z-]+) name=(\S+)`)
	name := code[2]
	f := l.finds(t, name, "installer", firstAddress+":50000")
	l.must(t, code[1]+"\n", "claim", name)
	if out := l.must(t, "", "install", name, "--yes"); !strings.Contains(out, "installed on disk capsule-lab, and verified") {
		t.Error("the installation does not say what it did")
	}
	cut(t, m)
	if err := m.Plug(false); err != nil {
		t.Fatal(err)
	}
	m.Args = append(m.Args, beforeIt(t)...)

	start(t, m)
	if after := l.finds(t, name, "claimed", firstAddress+":50000"); after.Fingerprint != f.Fingerprint || after.Context != name {
		t.Errorf("found %+v, it was %+v", after, f)
	}
	archive := filepath.Join(t.TempDir(), "web.tar")
	manifest := filepath.Join(t.TempDir(), "web.yaml")
	write(t, archive, imagetest.DockerSave(imagetest.PayloadImage(t, []string{"http", ":80", "hello"}), "web:1"))
	write(t, manifest, []byte(web))
	l.must(t, "", "--capsule", name, "image", "push", archive)
	l.must(t, "", "--capsule", name, "apply", "-f", manifest, "--wait", "--timeout", "10m")
	serves(t, firstAddress)
	l.moves(t, dhcp, name)
}

// moves gives the capsule another address, and sees all of it follow.
func (l *laptop) moves(t *testing.T, dhcp *nettest.DHCP, name string) {
	t.Helper()
	before := dhcp.Count()
	dhcp.Set(func(g *nettest.Grant) { g.Give = netip.MustParseAddr(laterAddress) })
	nettest.Eventually(t, 2*renewAfter, func() error {
		if len(dhcp.Requests(before, dhcpv4.MessageTypeRequest)) == 0 {
			return fmt.Errorf("no renewal came")
		}
		return nil
	})
	moved := time.Now()
	serves(t, laterAddress)
	l.finds(t, name, "claimed", laterAddress+":50000")
	took := time.Since(moved)
	t.Logf("ports and discovery followed after %.1f s", took.Seconds())
	if limit := 10 * time.Second * patience; took > limit {
		t.Errorf("they took %s, at most %s", took, limit)
	}
	l.must(t, "", "--capsule", name, "capsule", "info")
	if err := page(firstAddress); err == nil {
		t.Error("the old address answers yet")
	}
	nettest.Eventually(t, 10*time.Second, func() error {
		if out, _, _ := l.run(t, "", "discover", "--timeout", "2s", "-o", "json"); strings.Contains(out, firstAddress) {
			return fmt.Errorf("the old address is told of yet")
		}
		return nil
	})
}

// patience is for a machine that is emulated, and beside others.
const patience = 3

// machine is a whole one, on the laptop's network.
type machine struct {
	*lab.Machine
	started int64 // where the console's log of this start begins
}

// bareMachine has the image on a stick, an empty disk, and two sockets of which
// only one leads to the laptop and a DHCP server.
func bareMachine(t *testing.T) *machine {
	t.Helper()
	nettest.Tap(t, "tap0", laptopLink)
	nettest.Tap(t, "tap1", "")
	m, err := lab.Create(t.Context(), lab.Options{
		Name: "bare", Dir: t.TempDir(), Image: "../../build/capsule.img", MemoryBytes: 768 << 20, Stick: true, DiskBytes: disk.NeededBytes, Tap: "tap0",
		Args: []string{"-netdev", "tap,id=net1,script=no,downscript=no,ifname=tap1", "-device", "virtio-net-pci,netdev=net1,romfile="},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if log, err := os.ReadFile(m.ConsoleLog()); t.Failed() && err == nil {
			t.Logf("console: %s", log[max(0, len(log)-4000):])
		}
		_ = m.Kill(context.Background())
	})
	return &machine{Machine: m}
}

// beforeIt is a disk that the firmware and the kernel find before the machine's own.
func beforeIt(t *testing.T) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data.img")
	write(t, path, nil)
	if err := os.Truncate(path, disk.NeededBytes); err != nil {
		t.Fatal(err)
	}
	return []string{"-drive", "if=none,id=data,format=raw,file=" + path, "-device", "nvme,drive=data,serial=DATA,addr=0x10"}
}

func start(t *testing.T, m *machine) {
	t.Helper()
	m.started = 0
	if info, err := os.Stat(m.ConsoleLog()); err == nil {
		m.started = info.Size()
	}
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func cut(t *testing.T, m *machine) {
	t.Helper()
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// shown waits until the console shows it.
func (m *machine) shown(t *testing.T, form string) (found []string) {
	t.Helper()
	want := regexp.MustCompile(form)
	nettest.Eventually(t, 3*time.Minute, func() error {
		log, err := os.ReadFile(m.ConsoleLog())
		if err != nil {
			return err
		}
		if found = want.FindStringSubmatch(string(log[m.started:])); found == nil {
			return fmt.Errorf("the console does not show %s", form)
		}
		return nil
	})
	return found
}

// finds waits until a capsule is discovered so, alone.
func (l *laptop) finds(t *testing.T, name, state, host string) (f found) {
	t.Helper()
	nettest.Eventually(t, 3*time.Minute, func() error {
		got, err := l.discover(t)
		if err != nil {
			return err
		}
		if len(got) != 1 || got[0].Name != name || got[0].State != state || got[0].Host != host {
			return fmt.Errorf("found %+v, want %s, %s at %s", got, name, state, host)
		}
		f = got[0]
		return nil
	})
	return f
}

// serves waits for the page at an address.
func serves(t *testing.T, address string) {
	t.Helper()
	nettest.Eventually(t, time.Minute, func() error { return page(address) })
}

func page(address string) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + address + ":8080/")
	if err != nil {
		return err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
	if err != nil || !strings.Contains(string(text), "hello") {
		return fmt.Errorf("%s: %q, %w", r.Status, text, err)
	}
	return nil
}
