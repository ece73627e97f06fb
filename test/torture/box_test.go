//go:build linux && machine

package torture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/await"
	"capsule/internal/contexts"
	"capsule/internal/lab"
	"capsule/internal/nettest"
)

// The network: this machine is router, time server and operator.
const (
	cable   = "tap0"
	prefix  = "192.168.71.1/24"
	router  = "192.168.71.1"
	router2 = "192.168.71.2" // the same time server again, by another name
	ntpPort = ":123"
	// Leases are short, so that a campaign sees many of them.
	lease   = 60 * time.Second
	renewal = 20 * time.Second
)

// given are the addresses that the router gives, one after the other.
var given = []string{"192.168.71.50", "192.168.71.60", "192.168.71.70"}

const (
	boxName     = "torture"
	memoryBytes = 1536 << 20
	diskBytes   = 4224 << 20
	// emulatedTimes is how much longer everything may take without KVM.
	emulatedTimes = 4

	dialMax  = 3 * time.Second // to one address
	callMax  = 15 * time.Second
	lookEach = time.Second
	bootMax  = 3 * time.Minute
)

// box is the capsule that is tried, and the network around it.
type box struct {
	t       *testing.T
	machine *lab.Machine
	dir     string // of the programs that are run
	dhcp    *nettest.DHCP
	ntp     nettest.NTP
	keys    contexts.Context

	mu        sync.Mutex
	addresses []string // that it may have, the latest given first
}

// newBox starts a machine that was never started before.
func newBox(t *testing.T, image, dir string) *box {
	t.Helper()
	b := &box{t: t, dir: dir}
	nettest.Tap(t, cable, "")
	(*nettest.NS)(nil).Addr(t, cable, prefix, router2+"/24")
	b.ntp.Serve(t, router+ntpPort)
	b.ntp.Serve(t, router2+ntpPort)
	b.dhcp = nettest.NewDHCP(nettest.Grant{Server: netip.MustParsePrefix(prefix), DNS: netip.MustParseAddr(router), Lease: lease, Renew: renewal})
	b.give(given[0])
	b.dhcp.Serve(t, nil, cable)
	var err error
	b.machine, err = lab.Create(t.Context(), lab.Options{
		Name: boxName, Dir: filepath.Join(dir, "lab"), Image: image, MemoryBytes: memoryBytes, DiskBytes: diskBytes, Tap: cable,
	})
	if err == nil {
		b.keys, err = b.machine.Context()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.machine.Kill(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := b.machine.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// allowed is a time that is meant for KVM, on this machine.
func (b *box) allowed(limit time.Duration) time.Duration {
	if b.machine.Accel != "kvm" {
		limit *= emulatedTimes
	}
	return limit
}

// give has the router give this address from now on.
func (b *box) give(address string) {
	b.dhcp.Set(func(g *nettest.Grant) { g.Give, g.NAK, g.Mute = netip.MustParseAddr(address), false, false })
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addresses = slices.DeleteFunc(b.addresses, func(a string) bool { return a == address })
	b.addresses = slices.Insert(b.addresses, 0, address)
}

func (b *box) now() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.addresses)
}

// dial connects with a port of the capsule, wherever it is.
func (b *box) dial(ctx context.Context, port string) (net.Conn, error) {
	var errs []error
	for _, address := range b.now() {
		conn, err := (&net.Dialer{Timeout: dialMax}).DialContext(ctx, "tcp", net.JoinHostPort(address, port))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// client of a published port. Each request is a connection of its own: an old one may
// hang on an address that is gone.
func (b *box) client(limit time.Duration) *http.Client {
	return &http.Client{Timeout: limit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return b.dial(ctx, port)
		},
	}}
}

// call does something over a new connection with the API.
func (b *box) call(limit time.Duration, do func(ctx context.Context, conn *grpc.ClientConn) error) error {
	ctx, cancel := context.WithTimeout(b.t.Context(), b.allowed(limit))
	defer cancel()
	conn, err := b.keys.Dial(grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return b.dial(ctx, fmt.Sprint(contexts.Port))
	}))
	if err != nil {
		return err
	}
	defer conn.Close()
	return do(ctx, conn)
}

func (b *box) info() (info *capsulev1.InfoResponse, err error) {
	err = b.call(callMax, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		info, err = capsulev1.NewCapsuleServiceClient(conn).Info(ctx, &capsulev1.InfoRequest{})
		return err
	})
	return info, err
}

// until looks again and again until ok. The limit is for KVM.
func (b *box) until(limit time.Duration, ok func() error) error {
	limit = b.allowed(limit)
	ctx, cancel := context.WithTimeout(b.t.Context(), limit)
	defer cancel()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		if await.Pause(ctx, lookEach) != nil {
			return fmt.Errorf("not within %s: %w", limit, err)
		}
	}
}

// answers waits until the API does.
func (b *box) answers() error {
	return b.until(bootMax, func() error {
		_, err := b.info()
		return err
	})
}

// program is the operator's.
func (b *box) program() string { return filepath.Join(b.dir, "capsulectl") }

// ctl is an operator's command, and gives what it printed. The limit is for KVM.
func (b *box) ctl(limit time.Duration, args ...string) (string, error) {
	c := b.keys
	c.Host = net.JoinHostPort(b.now()[0], fmt.Sprint(contexts.Port))
	store, err := contexts.Open("")
	if err == nil {
		err = store.Put(c)
	}
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), b.allowed(limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, b.program(), append([]string{"--capsule", c.Name}, args...)...)
	cmd.WaitDelay = callMax
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("capsulectl %v: %w: %s", args, err, out)
	}
	return string(out), nil
}

// apply applies a manifest. The limit is for KVM.
func (b *box) apply(limit time.Duration, manifest string, flags ...string) error {
	path := filepath.Join(b.dir, "manifest.yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o600); err != nil {
		return err
	}
	_, err := b.ctl(limit, append([]string{"apply", "-f", path}, flags...)...)
	return err
}

// power switches the machine on, after it was cut off.
func (b *box) power(args []string) error {
	if err := b.machine.Kill(b.t.Context()); err != nil {
		return err
	}
	b.machine.Args = args
	return b.machine.Start(b.t.Context())
}

// evidence is what the machine says of itself when something is wrong.
func (b *box) evidence() {
	if log, err := os.ReadFile(b.machine.ConsoleLog()); err == nil {
		b.t.Logf("console:\n%s", log[max(0, len(log)-4000):])
	}
	for _, args := range [][]string{{"workload", "list"}, {"capsule", "logs", "--tail", "150"}, {"workload", "logs", containerName, "--tail", "20"}} {
		out, err := b.ctl(time.Minute, args...)
		b.t.Logf("capsulectl %v: %v\n%s", args, err, out)
	}
}
