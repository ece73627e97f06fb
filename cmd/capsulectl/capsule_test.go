//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-tpm/tpm2/transport"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/audit"
	"capsule/internal/config"
	"capsule/internal/contexts"
	"capsule/internal/filecopy"
	"capsule/internal/identity"
	"capsule/internal/image"
	"capsule/internal/logs"
	"capsule/internal/network"
	"capsule/internal/secret"
	"capsule/internal/server"
	"capsule/internal/state"
	"capsule/internal/store"
	"capsule/internal/workload"
)

// testCapsule is a capsule in this process: the real server, store and loop
// over real TLS. Only what needs root is different: workloads are plain
// processes, and images are names.
type testCapsule struct {
	dir     string
	ca      *identity.CA // nil of one that made its own
	id      *identity.Identity
	address string
}

// startCapsule starts one; its updates are those of the test, or made up for nil.
func startCapsule(dir string, updates server.Updates, defers func(func())) (*testCapsule, error) {
	c := &testCapsule{dir: dir}
	ca, err := identity.NewCA("test")
	if err != nil {
		return nil, err
	}
	c.ca = ca
	seed, err := ca.SeedPEM()
	if err != nil {
		return nil, err
	}
	seedPath := filepath.Join(dir, "seed.pem")
	if err := os.WriteFile(seedPath, seed, 0o600); err != nil {
		return nil, err
	}
	if c.id, err = identity.Load(filepath.Join(dir, "identity"), seedPath); err != nil {
		return nil, err
	}
	return c, c.serve(updates, defers)
}

// startUnclaimed starts one that nobody owns yet, in its first minute.
func startUnclaimed(dir string, defers func(func())) (*testCapsule, error) {
	id, err := identity.Load(filepath.Join(dir, "identity"), filepath.Join(dir, "seed.pem"))
	if err != nil {
		return nil, err
	}
	c := &testCapsule{dir: dir, id: id}
	err = id.OpenClaim(identity.Claiming{State: filepath.Join(dir, "claim.json"), SinceBoot: func() time.Duration { return time.Minute }})
	if err != nil {
		return nil, err
	}
	return c, c.serve(nil, defers)
}

// serve runs the capsule until the test ends.
func (c *testCapsule) serve(updates server.Updates, defers func(func())) error {
	dir := c.dir
	tlsConfig, err := c.id.ServerTLS("capsule-test")
	if err != nil {
		return err
	}
	st, err := store.Open(filepath.Join(dir, "state.db"))
	if err != nil {
		return err
	}
	logDir := func(name string) string { return filepath.Join(dir, "logs", name) }
	images := &nameImages{names: map[string]bool{"web:1": true}}
	driver := &processDriver{root: filepath.Join(dir, "root"), all: map[workload.ID]*process{}, ended: make(chan string, 100)}
	volumes, err := newFolderVolumes(filepath.Join(dir, "volumes"), st)
	if err != nil {
		return err
	}
	secrets := secret.Open(st, filepath.Join(dir, "secret.keys"), noTPM)
	loop := workload.NewLoop(workload.LoopOptions{
		Store: st, Images: images, Network: noNetwork{}, Volumes: volumes, Secrets: secrets, Drivers: map[string]workload.Driver{"Container": driver},
		LogDir: logDir, Mark: logs.Mark, DropLog: logs.Remove,
	})
	volumes.freed = loop.Freed
	if updates == nil {
		updates = newTestUpdates("v1.2.3", "v1.2.2")
	}
	auditLog, err := audit.Open(filepath.Join(dir, "audit"), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	srv, err := server.New(server.Options{
		TLS: tlsConfig, Identity: c.id, Audit: auditLog, Store: st, Images: images, Volumes: volumes, Secrets: secrets, Updates: updates, Version: "v1.2.3", Registries: config.NewRegistries(st, secrets), Runtime: loop,
		Debug: func(ctx context.Context, e workload.Exec) (int, error) {
			if len(e.Command) == 0 {
				e.Command = []string{"sh"}
			}
			return driver.Exec(ctx, workload.ID{}, e)
		},
		Backups: &state.Source{
			Store: st, Secrets: secrets, Volumes: volumes, Identity: filepath.Join(dir, "identity"), Perm: dir, Temp: dir,
			Header: func() *capsulev1.BackupHeader {
				return &capsulev1.BackupHeader{Version: "v1.2.3", Name: "capsule-test", MachineId: strings.Repeat("a", 32), Fingerprint: c.id.Fingerprint()}
			},
		},
		Kinds: []string{"Container"}, Machine: testMachine{dir}, LogDir: logDir, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	if c.address == "" { // one that is started again keeps its own
		c.address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", c.address)
	if err != nil {
		return err
	}
	c.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() { volumes.run(ctx) })
	parts.Go(func() { loop.Run(ctx) })       //nolint:errcheck // ends with ctx
	parts.Go(func() { srv.Serve(listener) }) //nolint:errcheck // ends with Stop
	defers(func() {
		srv.Stop()
		cancel()
		parts.Wait()
		driver.killAll()
		st.Close()       //nolint:errcheck // of a test
		auditLog.Close() //nolint:errcheck // as above
	})
	return os.MkdirAll(driver.root, 0o755)
}

// save writes a context with a certificate of the given role.
func (c *testCapsule) save(dir, name string, role capsulev1.Role) error {
	return c.saveFor(dir, name, role, 365*24*time.Hour)
}

func (c *testCapsule) saveFor(dir, name string, role capsulev1.Role, life time.Duration) error {
	pair, err := c.ca.IssueOperator("anna", role, life)
	if err != nil {
		return err
	}
	s, err := contexts.Open(dir)
	if err != nil {
		return err
	}
	return s.Put(contexts.Context{
		Name: name, Host: c.address, CA: string(c.ca.CertPEM()), Certificate: string(pair.CertPEM), Key: string(pair.KeyPEM),
	})
}

type testMachine struct{ dir string }

func (testMachine) Info() *capsulev1.InfoResponse {
	return &capsulev1.InfoResponse{Name: "capsule-test", Version: "1.2.3", Slot: "slot_a", Mode: capsulev1.Mode_MODE_NORMAL,
		Virtualization: "emulated: no /dev/kvm", Watchdog: "i6300esb", Addresses: []string{"10.0.0.2/24"}}
}
func (testMachine) Mode() (capsulev1.Mode, string)        { return capsulev1.Mode_MODE_NORMAL, "" }
func (testMachine) Power(server.PowerState, string) error { return nil }
func (testMachine) RestartService(string) error           { return nil }
func (m testMachine) SystemLog() string                   { return filepath.Join(m.dir, "system") }
func (m testMachine) KernelLog() string                   { return filepath.Join(m.dir, "kmsg") }

type noNetwork struct{}

func (noNetwork) Attach(context.Context, string, bool) (network.Attachment, error) {
	return network.Attachment{}, nil
}
func (noNetwork) AttachNone(string) (network.Attachment, error)      { return network.Attachment{}, nil }
func (noNetwork) HostAttachment() network.Attachment                 { return network.Attachment{} }
func (noNetwork) Detach(context.Context, string) error               { return nil }
func (noNetwork) SetStopped(string, bool) error                      { return nil }
func (noNetwork) Publish(context.Context, []network.Published) error { return nil }
func (noNetwork) Sync(context.Context, []string) error               { return nil }

// nameImages holds names; what is pushed must begin with "image ".
type nameImages struct {
	mu    sync.Mutex
	names map[string]bool
}

func (i *nameImages) Get(_ context.Context, ref string) (image.Image, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for name := range i.names {
		if ref == name || strings.HasSuffix(ref, "/"+name) {
			return image.Image{Name: ref, Digest: "sha256:0123456789abcdef"}, nil
		}
	}
	return image.Image{}, errdefs.ErrNotFound
}

func (i *nameImages) Pull(_ context.Context, ref string, _ func(done, total int64)) (image.Image, error) {
	return image.Image{}, errors.Join(errors.New("no registry has "+ref), errdefs.ErrNotFound)
}

func (i *nameImages) List(context.Context) ([]*capsulev1.Image, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var all []*capsulev1.Image
	for name := range i.names {
		all = append(all, &capsulev1.Image{Names: []string{name}, Digest: "sha256:0123456789abcdef"})
	}
	return all, nil
}

func (i *nameImages) Push(_ context.Context, r io.Reader, name string, progress func(*capsulev1.Progress)) (*capsulev1.PushResult, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	progress(&capsulev1.Progress{Step: "receive", Done: int64(len(data))})
	inside, ok := bytes.CutPrefix(bytes.TrimSpace(data), []byte("image "))
	if !ok {
		return nil, errors.Join(errors.New("push image: neither a docker-save nor an OCI archive"), errdefs.ErrInvalidArgument)
	}
	if name == "" {
		name = string(inside)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.names[name] = true
	return &capsulev1.PushResult{Images: []*capsulev1.Image{{Names: []string{name}, Digest: "sha256:0123456789abcdef", Size: int64(len(data))}}}, nil
}

func (i *nameImages) Prune(context.Context, map[string]bool, bool) (*capsulev1.PruneResponse, error) {
	return &capsulev1.PruneResponse{}, nil
}

func noTPM() (transport.TPMCloser, error) { return nil, errors.New("no TPM in tests") }

// processDriver runs workloads as processes of this machine.
type processDriver struct {
	root string
	mu   sync.Mutex
	all  map[workload.ID]*process
	// ended names workloads whose process is gone.
	ended chan string
}

type process struct {
	seen workload.Observed
	cmd  *exec.Cmd
	done chan struct{}
}

func (d *processDriver) StepMax() time.Duration { return time.Minute }

func (d *processDriver) List(context.Context) ([]workload.Observed, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []workload.Observed
	for _, p := range d.all {
		list = append(list, p.seen)
	}
	return list, nil
}

func (d *processDriver) Prepare(_ context.Context, in workload.Instance) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all[in.ID] == nil {
		d.all[in.ID] = &process{seen: workload.Observed{ID: in.ID, State: workload.Prepared, ImageDigest: in.Image.Digest}}
	}
	return nil
}

func (d *processDriver) Start(_ context.Context, in workload.Instance) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.all[in.ID]
	if p == nil {
		return errdefs.ErrNotFound
	}
	w, err := logs.NewWriter(in.LogDir, logs.DefaultLimits)
	if err != nil {
		return err
	}
	p.cmd = exec.Command(in.Args[0], in.Args[1:]...)
	p.cmd.Env = append(os.Environ(), in.SecretEnv...)
	var writing sync.Mutex
	p.cmd.Stdout, p.cmd.Stderr = logStream{&writing, w, logs.Stdout}, logStream{&writing, w, logs.Stderr}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.seen.State, p.seen.StartedAt, p.done = workload.Running, time.Now(), make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		cmd.Wait() //nolint:errcheck // the state tells
		w.Close()
		d.mu.Lock()
		p.seen.State, p.seen.FinishedAt, p.seen.ExitCode = workload.Ended, time.Now(), exitCode(cmd)
		d.mu.Unlock()
		close(done)
		d.ended <- in.Name
	}(p.cmd, p.done)
	return nil
}

func exitCode(cmd *exec.Cmd) int {
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return 128 + int(s.Signal())
	}
	return cmd.ProcessState.ExitCode()
}

// logStream writes one of a process's two outputs; both share a writer, which
// is for one caller at a time.
type logStream struct {
	writing *sync.Mutex
	w       *logs.Writer
	stream  logs.Stream
}

func (s logStream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.w.Write(s.stream, p)
	s.w.Flush()
	return len(p), nil
}

func (d *processDriver) find(id workload.ID) *process {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all[id]
}

func (d *processDriver) Stop(_ context.Context, id workload.ID, signal int, grace time.Duration) error {
	p := d.find(id)
	if p == nil || p.done == nil {
		return nil
	}
	syscall.Kill(-p.cmd.Process.Pid, syscall.Signal(signal)) //nolint:errcheck // it may have ended
	select {
	case <-p.done:
	case <-time.After(grace):
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) //nolint:errcheck // as above
		<-p.done
	}
	return nil
}

func (d *processDriver) Remove(ctx context.Context, id workload.ID) error {
	err := d.Stop(ctx, id, int(syscall.SIGKILL), time.Second)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.all, id)
	return err
}

func (d *processDriver) killAll() {
	list, _ := d.List(context.Background()) //nolint:errcheck // never fails
	for _, o := range list {
		d.Remove(context.Background(), o.ID) //nolint:errcheck // as above
	}
}

func (d *processDriver) Exec(ctx context.Context, _ workload.ID, e workload.Exec) (int, error) {
	cmd := exec.CommandContext(ctx, e.Command[0], e.Command[1:]...)
	cmd.Env = append(os.Environ(), e.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = e.Stdin, e.Stdout, e.Stderr
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return 127, nil
	case errors.Is(err, os.ErrPermission):
		return 126, nil
	case cmd.ProcessState == nil:
		return 0, err
	}
	return exitCode(cmd), nil
}

func (d *processDriver) CopyTo(_ context.Context, _ workload.ID, path, source string, tar io.Reader) (files, bytes uint64, err error) {
	root, err := filecopy.OpenRoot(d.root)
	if err != nil {
		return 0, 0, err
	}
	defer root.Close()
	return filecopy.Unpack(root, path, source, tar)
}

func (d *processDriver) CopyFrom(_ context.Context, _ workload.ID, path string, tar io.Writer) error {
	root, err := filecopy.OpenRoot(d.root)
	if err != nil {
		return err
	}
	defer root.Close()
	return filecopy.Pack(root, path, tar)
}

// Volumes of processes are folders, which have no size and need no freezing.
func (d *processDriver) Freeze(context.Context, workload.ID, time.Duration) (func(), error) {
	return func() {}, nil
}
func (d *processDriver) Grown(context.Context, workload.ID, string, int64) error { return nil }

var begun = time.Now()

func (d *processDriver) Stats(context.Context, workload.ID) (workload.Stats, error) {
	return workload.Stats{MemoryBytes: 32 << 20, CPUTime: time.Since(begun) / 2, PIDs: 2, DiskWritten: 4096}, nil
}

func (d *processDriver) Events(ctx context.Context) <-chan string {
	events := make(chan string)
	go func() {
		defer close(events)
		for {
			select {
			case <-ctx.Done():
				return
			case name := <-d.ended:
				select {
				case <-ctx.Done():
				case events <- name:
				}
			}
		}
	}()
	return events
}

func TestManualIsCurrent(t *testing.T) {
	want := manual(newRootCommand(&app{ui: &ui{}}))
	got, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/cli.md is not current; run: go generate ./cmd/capsulectl")
	}
}
