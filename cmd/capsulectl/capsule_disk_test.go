//go:build linux

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/disk"
	"capsule/internal/identity"
	"capsule/internal/installer"
	"capsule/internal/server"
	"capsule/internal/storage"
)

// A rack is a capsule's disks, which are only told of.
type rack struct {
	testMachine
	disks    []storage.Disk
	underWay bool
	dies     bool // in the middle of moving
	die      func()
	took     atomic.Int32
	kept     atomic.Int32
}

func (*rack) Ready(context.Context) error { return nil }

func (r *rack) List(context.Context) ([]storage.Disk, error) { return r.disks, nil }

func (*rack) Grow(context.Context) (before, now storage.Sizes, err error) {
	return storage.Sizes{Perm: 4 << 30, Pool: 10 << 30}, storage.Sizes{Perm: 4 << 30, Pool: 20 << 30}, nil
}

func (r *rack) Plan(_ context.Context, choice installer.Choice, replaces string) (storage.Plan, error) {
	var all []installer.Candidate
	for _, d := range r.disks {
		all = append(all, d.Candidate)
	}
	plan, err := installer.Rules{Unfit: installer.Unfit, Erase: "%s --erase"}.Plan(all, choice)
	p := storage.Plan{Plan: plan, UnderWay: r.underWay}
	if replaces != "" {
		p.Replaced, p.MovingBytes = &r.disks[1].Device, 4<<30
	}
	return p, err
}

func (r *rack) Take(ctx context.Context, choice installer.Choice, replaces, planned string, tell func(storage.Progress) error) error {
	plan, err := r.Plan(ctx, choice, replaces)
	if err != nil || plan.Digest != planned {
		return fmt.Errorf("digest %q: %w", planned, errdefs.ErrAborted)
	}
	r.took.Add(1)
	for _, p := range []storage.Progress{{Step: "prepare the disk"}, {Step: "move volumes", Done: 1 << 30, Total: 4 << 30}, {Step: "wait", Waits: "disk \"X\" is missing"}} {
		if err := tell(p); err != nil {
			return err
		}
	}
	if r.dies {
		go r.die()
		<-ctx.Done()
	}
	return ctx.Err()
}

func (r *rack) Keep(context.Context) error {
	r.kept.Add(1)
	return nil
}

func rackDisks() []storage.Disk {
	const gib = 1 << 30
	all := stickDisks()
	return []storage.Disk{
		{Candidate: installer.Candidate{Device: disk.Device{Serial: "LOST", Model: "Toshiba", Bytes: 100 * gib}}, Use: storage.Pool, State: storage.Missing, Message: "disk \"LOST\" is missing"},
		{
			Candidate: installer.Candidate{Device: disk.Device{Name: "sdc", Model: "WDC", Serial: "OLD", Bytes: 500 * gib, Sector: 512}, Contents: []disk.Content{{Kind: "LVM"}}},
			Use:       storage.Pool, State: storage.Leaving, PoolBytes: 400 * gib, UsedBytes: 200 * gib, MovedBytes: 50 * gib, MovingBytes: 200 * gib, Message: "move volumes",
		},
		{Candidate: all[0], Use: storage.System, PoolBytes: 20 * gib, UsedBytes: 10 * gib},
		{Candidate: all[1]},
		{Candidate: all[2]},
	}
}

// startRack serves it, and saves the contexts "box" of its admin, the current one, and
// "reader".
func startRack(t *testing.T, r *rack) {
	t.Helper()
	dir := t.TempDir()
	c := &testCapsule{dir: dir}
	var err error
	if c.ca, err = identity.NewCA("test"); err != nil {
		t.Fatal(err)
	}
	seed, err := c.ca.SeedPEM()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "seed.pem")
	if err := os.WriteFile(file, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	if c.id, err = identity.Load(filepath.Join(dir, "identity"), file); err != nil {
		t.Fatal(err)
	}
	config, err := c.id.ServerTLS("capsule-test")
	if err != nil {
		t.Fatal(err)
	}
	r.testMachine = testMachine{dir}
	srv, err := server.New(server.Options{TLS: config, Identity: c.id, Machine: r, Disks: r, Version: "v1.2.3", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.address = listener.Addr().String()
	go func() { _ = srv.Serve(listener) }()
	r.die = sync.OnceFunc(srv.Stop)
	t.Cleanup(r.die)
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("CAPSULE_HOST", "box")
	for name, role := range map[string]capsulev1.Role{"box": capsulev1.Role_ROLE_ADMIN, "reader": capsulev1.Role_ROLE_READER} {
		if err := c.save(filepath.Join(dir, "capsule"), name, role); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDisk(t *testing.T) {
	for name, tc := range map[string]struct {
		args           []string
		host           string // default the admin's
		typed          string
		underWay, dies bool
		code           int
		says           []string
		took           int32
		kept           int32
	}{
		"list": {args: []string{"list"}, host: "reader", says: []string{
			"LOST", "missing", "leaving, 25 % moved", "system", "200.0 GiB of 400.0 GiB, 50 %", "GPT, 1 partition: NTFS",
		}},
		"grow":                   {args: []string{"grow"}, says: []string{"storage: 4.0 GiB, as before; pool: 20.0 GiB, was 10.0 GiB"}},
		"grow, a reader":         {args: []string{"grow"}, host: "reader", code: exitRefused, says: []string{"admin"}},
		"add":                    {args: []string{"add", "NVME1"}, typed: "yes\n", says: []string{"joins the pool", "it is empty", "prepare the disk", "disk NVME1 is in the pool"}, took: 1},
		"add, not agreed":        {args: []string{"add", "NVME1"}, typed: "no\n", code: exitFailed, says: []string{"not agreed to; nothing was written"}},
		"add, nobody there":      {args: []string{"add", "NVME1"}, code: exitUsage, says: []string{"--yes"}},
		"add, shown only":        {args: []string{"add", "NVME1", "--dry-run"}, says: []string{"joins the pool", "nothing was written"}},
		"add, a full one":        {args: []string{"add", "SATA1", "--yes"}, code: exitFailed, says: []string{`NTFS "holiday"`, "SATA1 --erase"}},
		"add, a full one erased": {args: []string{"add", "sata1", "--erase"}, typed: "SATA1\n", says: []string{"all that is on it is lost", `NTFS "holiday"`}, took: 1},
		"add, yes to a full one": {args: []string{"add", "sata1", "--erase"}, typed: "yes\n", code: exitFailed, says: []string{"not agreed to"}},
		"add, a reader":          {args: []string{"add", "NVME1", "--yes"}, host: "reader", code: exitRefused, says: []string{"admin"}},
		"add without a disk":     {args: []string{"add"}, code: exitUsage, says: []string{"arg"}},
		"replace": {args: []string{"replace", "OLD", "NVME1", "--yes"}, took: 1, says: []string{
			"takes the place of disk OLD (WDC, now sdc), from which 4.0 GiB are moved", "move volumes: 25 %", `wait: disk "X" is missing`, "disk OLD is replaced by NVME1, and may be pulled out",
		}},
		"replace, under way": {args: []string{"replace", "OLD", "NVME1"}, underWay: true, says: []string{"under way", "may be pulled out"}, took: 1},
		"replace, cut":       {args: []string{"replace", "OLD", "NVME1", "--yes"}, dies: true, code: exitFailed, says: []string{"goes on with it by itself", "hint:", "disk list"}, took: 1},
		"keep":               {args: []string{"keep"}, says: []string{"both disks stay"}, kept: 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := &rack{underWay: tc.underWay, dies: tc.dies, disks: rackDisks()}
			startRack(t, r)
			if tc.host != "" {
				t.Setenv("CAPSULE_HOST", tc.host)
			}
			code, out, errs := runTyped(t, tc.typed, append([]string{"capsule", "disk"}, tc.args...)...)
			if code != tc.code || r.took.Load() != tc.took || r.kept.Load() != tc.kept {
				t.Errorf("exit %d, want %d; took %d, kept %d\n%s%s", code, tc.code, r.took.Load(), r.kept.Load(), out, errs)
			}
			for _, text := range tc.says {
				if !strings.Contains(out+errs, text) {
					t.Errorf("doesn't say %q:\n%s%s", text, out, errs)
				}
			}
		})
	}
}
