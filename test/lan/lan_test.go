//go:build linux

// Package lan tests first contact as an operator has it: the built capsulectl on a
// laptop, and capsules that are other machines on its network. Machines are network
// namespaces; what a capsule runs there is the real server, identity and responder.
package lan

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/identity"
	"capsule/internal/mdns"
	"capsule/internal/nettest"
	"capsule/internal/server"
	"capsule/internal/store"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// laptop is this process's machine, or another.
type laptop struct {
	program string
	home    string
	ns      *nettest.NS
}

const (
	laptopLink    = "lan0"
	laptopAddress = "192.168.70.1/24"
)

// newLaptopIn is one with the built program.
func newLaptopIn(t *testing.T, ns *nettest.NS) *laptop {
	t.Helper()
	nettest.Require(t)
	l := &laptop{program: filepath.Join(t.TempDir(), "capsulectl"), home: t.TempDir(), ns: ns}
	build := exec.Command("go", "build", "-o", l.program, "capsule/cmd/capsulectl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build capsulectl: %v\n%s", err, out)
	}
	return l
}

func newLaptop(t *testing.T) *laptop {
	t.Helper()
	l := newLaptopIn(t, nil)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = laptopLink
	noSnooping := false
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &noSnooping}); err != nil {
		t.Fatal(err)
	}
	here := (*nettest.NS)(nil)
	t.Cleanup(func() { _ = netlink.LinkDel(here.Link(t, laptopLink)) })
	here.Up(t, laptopLink)
	here.Addr(t, laptopLink, laptopAddress)
	return l
}

// run gives what a command printed, and its exit code.
func (l *laptop) run(t *testing.T, stdin string, args ...string) (out, errs string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.program, args...)
	cmd.Env = []string{"HOME=" + l.home, "PATH=/usr/bin:/bin"}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := l.ns.Try(cmd.Start); err != nil {
		t.Error(err)
		return "", "", -1
	}
	_ = cmd.Wait() // the exit code tells
	t.Logf("capsulectl %s: exit %d\n%s%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), &stdout, &stderr)
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// must run.
func (l *laptop) must(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, _, exit := l.run(t, stdin, args...)
	if exit != 0 {
		t.Fatal("capsulectl ", strings.Join(args, " "), " failed")
	}
	return out
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// box is a capsule.
type box struct {
	ns        *nettest.NS
	name      string
	id        *identity.Identity
	responder *mdns.Responder
	server    *grpc.Server
}

func newBox(t *testing.T, name, address string) *box {
	t.Helper()
	dir := t.TempDir()
	id, err := identity.Load(filepath.Join(dir, "identity"), filepath.Join(dir, "seed.pem"))
	if err != nil {
		t.Fatal(err)
	}
	err = id.OpenClaim(identity.Claiming{State: filepath.Join(dir, "claim.json"), SinceBoot: func() time.Duration { return time.Minute }})
	if err != nil {
		t.Fatal(err)
	}
	b := &box{ns: nettest.New(t), name: name, id: id, responder: mdns.NewResponder(slog.New(slog.DiscardHandler))}
	b.plug(t)
	b.serve(t, dir)
	b.answer(t)
	id.OnChange(b.say)
	b.say()
	b.at(t, address)
	return b
}

// plug connects the capsule with the laptop's network.
func (b *box) plug(t *testing.T) {
	t.Helper()
	port := "p" + strings.TrimPrefix(b.name, "capsule-")
	nettest.Cable(t, port, b.ns, "eth0")
	here := (*nettest.NS)(nil)
	if err := netlink.LinkSetMaster(here.Link(t, port), here.Link(t, laptopLink)); err != nil {
		t.Fatal(err)
	}
}

func (b *box) serve(t *testing.T, dir string) {
	t.Helper()
	config, err := b.id.ServerTLS(b.name)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	b.server, err = server.New(server.Options{TLS: config, Identity: b.id, Store: st, Machine: around{b.name}, Version: "v1.2.3", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	var listener net.Listener
	b.ns.Do(t, func() error {
		listener, err = net.Listen("tcp", ":50000")
		return err
	})
	done := make(chan struct{})
	go func() { defer close(done); _ = b.server.Serve(listener) }()
	t.Cleanup(func() { b.server.Stop(); <-done; _ = st.Close() })
}

// answer has the responder run as long as the test.
func (b *box) answer(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.ns.Try(func() error { return b.responder.Run(ctx) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (b *box) say() {
	state := mdns.Unclaimed
	if b.id.Claimed() {
		state = mdns.Claimed
	}
	b.responder.Say(mdns.Service{
		Name: b.name, ID: strings.Repeat(b.name[len(b.name)-1:], 32), Version: "v1.2.3", State: state, Fingerprint: b.id.Fingerprint(), Port: 50000,
	})
}

// at gives the capsule this one address, as DHCP does, or none.
func (b *box) at(t *testing.T, address string) {
	t.Helper()
	l := b.ns.Link(t, "eth0")
	old, err := b.ns.Handle.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range old {
		if err := b.ns.Handle.AddrDel(l, &a); err != nil {
			t.Fatal(err)
		}
	}
	link := mdns.Link{Index: l.Attrs().Index, Name: "eth0"}
	if address != "" {
		b.ns.Addr(t, "eth0", address)
		link.Addresses = []netip.Prefix{netip.MustParsePrefix(address)}
	}
	b.responder.On([]mdns.Link{link})
}

// around is the machine around a capsule.
type around struct{ name string }

func (a around) Info() *capsulev1.InfoResponse {
	return &capsulev1.InfoResponse{Name: a.name, Version: "v1.2.3"}
}
func (around) Mode() (capsulev1.Mode, string)        { return capsulev1.Mode_MODE_NORMAL, "" }
func (around) Power(server.PowerState, string) error { return nil }
func (around) RestartService(string) error           { return nil }
func (around) SystemLog() string                     { return os.DevNull }
func (around) KernelLog() string                     { return os.DevNull }

// found is what "discover -o json" shows of a capsule.
type found struct{ Name, State, Host, Context, Fingerprint string }

func (l *laptop) discover(t *testing.T) (got []found, err error) {
	t.Helper()
	out, errs, code := l.run(t, "", "discover", "--timeout", "2s", "-o", "json")
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
		return nil, fmt.Errorf("exit %d, %w: %s", code, err, errs)
	}
	return got, nil
}

func (l *laptop) discovers(t *testing.T, want ...found) {
	t.Helper()
	nettest.Eventually(t, 20*time.Second, func() error {
		got, err := l.discover(t)
		if err != nil {
			return err
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("found %+v, want %+v", got, want)
		}
		return nil
	})
}

// From two machines that are just switched on to an operator of both, without an
// address typed; one gets another address, and one is pulled out.
func TestFirstContact(t *testing.T) {
	l := newLaptop(t)
	a, b := newBox(t, "capsule-a", "192.168.70.20/24"), newBox(t, "capsule-b", "192.168.70.21/24")
	printA, printB := a.id.Fingerprint(), b.id.Fingerprint()
	l.discovers(t,
		found{"capsule-a", "unclaimed", "192.168.70.20:50000", "", printA},
		found{"capsule-b", "unclaimed", "192.168.70.21:50000", "", printB})
	if out, errs, _ := l.run(t, "", "discover", "--timeout", "2s"); !strings.Contains(out, printA) || !strings.Contains(errs, `"capsulectl claim capsule-a" takes it`) {
		t.Error("the table does not say how to go on")
	}
	for _, x := range []*box{a, b} {
		code := string(x.id.Offer().Code)
		if _, errs, exit := l.run(t, code+"\n", "claim", x.name, "--operator", "ann"); exit != 0 {
			t.Fatalf("claim %s: %s", x.name, errs)
		}
	}
	l.discovers(t,
		found{"capsule-a", "claimed", "192.168.70.20:50000", "capsule-a", printA},
		found{"capsule-b", "claimed", "192.168.70.21:50000", "capsule-b", printB})
	if out, _, exit := l.run(t, "", "capsule", "info", "--all"); exit != 0 || !strings.Contains(out, "capsule-a") || !strings.Contains(out, "capsule-b") {
		t.Error("the capsules don't answer together")
	}

	a.at(t, "192.168.70.30/24")
	l.discovers(t,
		found{"capsule-a", "claimed", "192.168.70.30:50000", "capsule-a", printA},
		found{"capsule-b", "claimed", "192.168.70.21:50000", "capsule-b", printB})
	if out, _, exit := l.run(t, "", "--capsule", "capsule-a", "capsule", "info"); exit != 0 || !strings.Contains(out, "capsule-a") {
		t.Error("a context does not follow its capsule")
	}
	if out, _, _ := l.run(t, "", "context", "list"); !strings.Contains(out, "192.168.70.30:50000") {
		t.Error("the new address is not kept")
	}

	b.ns.Down(t, "eth0")
	out, errs, exit := l.run(t, "", "capsule", "info", "--all")
	if exit != 1 || !strings.Contains(out, "capsule-a") || !strings.Contains(errs, `error: capsule "capsule-b"`) {
		t.Error("one dead box hides the other, or is not told of")
	}
	l.discovers(t, found{"capsule-a", "claimed", "192.168.70.30:50000", "capsule-a", printA})
}

// Where nobody gives addresses, as on a cable straight to the laptop, a capsule is
// claimed all the same; its address there is one that only this network has.
func TestNoDHCP(t *testing.T) {
	l := newLaptop(t)
	a := newBox(t, "capsule-a", "")
	var list []found
	nettest.Eventually(t, 20*time.Second, func() error {
		var err error
		if list, err = l.discover(t); err != nil {
			return err
		}
		if len(list) != 1 || !strings.HasPrefix(list[0].Host, "[fe80::") || !strings.HasSuffix(list[0].Host, "%"+laptopLink+"]:50000") {
			return fmt.Errorf("found %+v", list)
		}
		return nil
	})
	// By the address that was shown, as one does of two namesakes.
	if _, errs, exit := l.run(t, string(a.id.Offer().Code)+"\n", "claim", list[0].Host, "--operator", "ann"); exit != 0 {
		t.Fatalf("claim: %s", errs)
	}
	if out, _, exit := l.run(t, "", "capsule", "info"); exit != 0 || !strings.Contains(out, "capsule-a") {
		t.Error("the context does not reach its capsule")
	}
}
