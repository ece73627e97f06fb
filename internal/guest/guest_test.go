package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	guestv1 "capsule/api/capsule/guest/v1"
	"capsule/internal/cgroup"
	"capsule/internal/imagetest"
	"capsule/internal/process"
)

func TestMain(m *testing.M) {
	Stage()
	os.Exit(m.Run())
}

// patience is how long anything here may take.
const patience = 2 * time.Minute

// needRoot skips where namespaces and cgroups can't be made, and gives a cgroup.
func needRoot(t *testing.T) cgroup.Group {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	for _, root := range []string{cgroup.Root, cgroup.Root + "/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(root, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir, err := os.MkdirTemp(root, "capsule-guest-test")
		if err != nil {
			continue
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		g, err := newGroup(filepath.Join(dir, "payload"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(string(g)) })
		return g
	}
	t.Skip("SKIPPED: needs a cgroup of version 2 that can be written to")
	return ""
}

// unpack makes a folder of layers.
func unpack(t *testing.T, layers ...*imagetest.Layer) string {
	t.Helper()
	dir := t.TempDir()
	for _, layer := range layers {
		files := tar.NewReader(bytes.NewReader(layer.Tar()))
		for {
			h, err := files.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(dir, h.Name)
			switch h.Typeflag {
			case tar.TypeDir:
				err = os.MkdirAll(name, 0o755)
			case tar.TypeSymlink:
				err = os.Symlink(h.Linkname, name)
			default:
				var data []byte
				if data, err = io.ReadAll(files); err == nil {
					err = os.WriteFile(name, data, 0o755)
				}
			}
			if err == nil && h.Typeflag != tar.TypeSymlink {
				err = os.Chmod(name, h.FileInfo().Mode())
			}
			if err == nil {
				err = os.Lchown(name, h.Uid, h.Gid)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// A here is a payload on this machine, without a guest around it.
type here struct {
	*agent
	client      guestv1.GuestServiceClient
	out, errOut imagetest.Output
}

// runHere starts a payload of the test image.
func runHere(t *testing.T, args []string, change ...func(*launch)) *here {
	t.Helper()
	h, err := tryHere(t, args, change...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func tryHere(t *testing.T, args []string, change ...func(*launch)) (*here, error) {
	t.Helper()
	g := needRoot(t)
	h := &here{agent: &agent{}}
	etc := t.TempDir()
	for _, name := range []string{"resolv.conf", "hosts"} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(name+" of the test\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l := launch{
		Limits: allowed(t),
		Root:   unpack(t, imagetest.PayloadLayer(t)), Hostname: "web", Args: append([]string{"/payload"}, args...), Cwd: "/", OwnStandard: true,
		Account: process.Account{Home: "/root"},
		Shown:   []showing{{Source: etc + "/resolv.conf", Path: "/etc/resolv.conf"}, {Source: etc + "/hosts", Path: "/etc/hosts"}},
	}
	for _, c := range change {
		c(&l)
	}
	l.Env = process.Environment(l.Env, l.Account)
	p, err := startPayload(&h.children, g, &mounted{}, l, &h.out, &h.errOut)
	if err != nil {
		return nil, err
	}
	h.payload = p
	t.Cleanup(func() {
		_ = p.group.Kill()
		<-p.ended
	})
	h.client = serveHere(t, h.agent)
	return h, nil
}

// allowed are the limits as far as this machine lets us set them.
func allowed(t *testing.T) []limit {
	t.Helper()
	lower := append([]limit{}, limits...)
	for i, l := range lower {
		var now unix.Rlimit
		if err := unix.Getrlimit(l.Resource, &now); err != nil {
			t.Fatal(err)
		}
		lower[i].Hard = min(l.Hard, now.Max)
		lower[i].Soft = min(l.Soft, lower[i].Hard)
	}
	return lower
}

// serveHere gives a client of the agent.
func serveHere(t *testing.T, a *agent) guestv1.GuestServiceClient {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(a)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return newClient(t, func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	})
}

func newClient(t *testing.T, dial func(context.Context) (net.Conn, error)) guestv1.GuestServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///guest", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return guestv1.NewGuestServiceClient(conn)
}

// end waits for the payload's end.
func end(t *testing.T, c guestv1.GuestServiceClient) *guestv1.Ending {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := c.Wait(ctx, &guestv1.WaitRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetEnding()
}

// has looks for text in what the payload prints, for a time.
func has(t *testing.T, out *imagetest.Output, text string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		if strings.Contains(out.String(), text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %q in %q", text, out.String())
		}
		<-time.After(10 * time.Millisecond)
	}
}
