//go:build linux

package main

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/contexts"
	"capsule/internal/disk"
	"capsule/internal/identity"
	"capsule/internal/installer"
	"capsule/internal/server"
	"capsule/internal/state"
	"capsule/internal/update"
)

// A stick is a machine that was started to be installed, with disks that are only
// told of.
type stick struct {
	testMachine
	address string
	disks   []installer.Candidate
	change  bool // something appears on a disk once it was shown
	wrote   atomic.Int32
	stage   *state.Stage
	// written is called at the end of an installation that restores.
	written func(*state.Staged)
}

func (*stick) Mode() (capsulev1.Mode, string) { return capsulev1.Mode_MODE_INSTALLER, "from a stick" }

func (s *stick) Disks() []installer.Candidate { return s.disks }

func (s *stick) Plan(choice installer.Choice) (installer.Plan, error) {
	return installer.NewPlan(s.disks, choice)
}

func (s *stick) Install(_ context.Context, choice installer.Choice, planned string, progress func(installer.Progress)) error {
	if s.change {
		s.disks[1].Contents = append(s.disks[1].Contents, disk.Content{Kind: "ext4"})
	}
	plan, err := installer.NewPlan(s.disks, choice)
	if err != nil {
		return err
	}
	if plan.Digest != planned {
		return context.DeadlineExceeded
	}
	s.wrote.Add(1)
	if choice.Restore != "" {
		staged, err := s.stage.Get(choice.Restore)
		if err != nil {
			return err
		}
		s.written(staged)
	}
	for done := int64(0); done <= 4; done++ {
		progress(installer.Progress{Step: "verify", Done: done << 20, Total: 4 << 20})
	}
	return nil
}

// startStick serves it, and saves the context "box" of its admin.
func startStick(t *testing.T, s *stick) {
	t.Helper()
	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.IssueOperator("anna", capsulev1.Role_ROLE_ADMIN, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := ca.SeedPEM(pair.CertPEM)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "seed.pem")
	if err := os.WriteFile(file, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	store, _ := serveStick(t, s, file)
	if err := store.Put(contexts.Context{Name: "box", Host: s.address, CA: string(ca.CertPEM()), Certificate: string(pair.CertPEM), Key: string(pair.KeyPEM)}); err != nil {
		t.Fatal(err)
	}
}

// serveStick serves a stick with this seed, or one that is to be claimed.
func serveStick(t *testing.T, s *stick, seed string) (*contexts.Store, *identity.Identity) {
	t.Helper()
	dir := t.TempDir()
	id, err := identity.Load(filepath.Join(dir, "identity"), seed)
	if err != nil {
		t.Fatal(err)
	}
	if err := id.OpenClaim(identity.Claiming{State: filepath.Join(dir, "claim.json"), SinceBoot: func() time.Duration { return time.Minute }}); err != nil {
		t.Fatal(err)
	}
	config, err := id.ServerTLS("capsule-test")
	if err != nil {
		t.Fatal(err)
	}
	s.testMachine = testMachine{dir}
	s.stage = &state.Stage{Dir: filepath.Join(dir, "restore"), Follows: func(version string) bool { return update.Follows("v1.2.3", version) }}
	srv, err := server.New(server.Options{TLS: config, Identity: id, Machine: s, Installer: s, Stage: s.stage, Version: "v1.2.3", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = listener.Addr().String()
	go func() { _ = srv.Serve(listener) }()
	t.Cleanup(srv.Stop)
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	t.Setenv("CAPSULE_HOST", "")
	store, err := contexts.Open("")
	if err != nil {
		t.Fatal(err)
	}
	return store, id
}

func stickDisks() []installer.Candidate {
	const gib = 1 << 30
	return []installer.Candidate{
		{Device: disk.Device{Name: "sda", Model: "DataTraveler", Serial: "STICK", Bytes: 32 * gib, Sector: 512, Removable: true}, Booted: true, Contents: []disk.Content{{Kind: "GPT"}}},
		{Device: disk.Device{Name: "nvme0n1", Model: "WD_BLACK", Serial: "NVME1", Bytes: 500 * gib, Sector: 512}},
		{Device: disk.Device{Name: "sdb", Model: "Samsung", Serial: "SATA1", Bytes: 1000 * gib, Sector: 512}, Contents: []disk.Content{
			{Kind: "GPT", Bytes: 1000 * gib}, {Where: `partition 1 "photos"`, Kind: "NTFS", Label: "holiday", Bytes: 999 * gib},
		}},
	}
}

// typed is a terminal's input, or none.
func runTyped(t *testing.T, typed string, args ...string) (code int, out, err string) {
	t.Helper()
	var o, e bytes.Buffer
	u := &ui{in: strings.NewReader(typed), out: &o, err: &e, inTTY: typed != ""}
	code = execute(t.Context(), u, args)
	return code, o.String(), e.String()
}

func TestInstall(t *testing.T) {
	for name, tc := range map[string]struct {
		args  []string
		typed string
		code  int
		says  []string
		wrote int32
	}{
		"the empty disk, agreed":      {typed: "yes\n", says: []string{"it is empty", `Type "yes"`, "pull the stick", "installed on disk NVME1"}, wrote: 1},
		"the empty disk, beforehand":  {args: []string{"--yes"}, says: []string{"Capsule v1.2.3 is installed on disk NVME1"}, wrote: 1},
		"not agreed":                  {typed: "no\n", code: exitFailed, says: []string{"not agreed to; nothing was written"}},
		"nobody there":                {code: exitUsage, says: []string{"hint: --yes agrees beforehand"}},
		"shown only":                  {args: []string{"--dry-run"}, says: []string{"SATA1", "GPT, 1 partition: NTFS", "runs from", "nothing was written"}},
		"a full disk":                 {args: []string{"--disk", "SATA1", "--yes"}, code: exitFailed, says: []string{`partition 1 "photos": NTFS "holiday"`, "--erase"}},
		"a full disk, erased":         {args: []string{"--disk", "sata1", "--erase"}, typed: "SATA1\n", says: []string{"all that is on it is lost", `partition 1 "photos": NTFS "holiday", 999`, "installed on disk SATA1"}, wrote: 1},
		"a full disk, yes said to it": {args: []string{"--disk", "sata1", "--erase"}, typed: "yes\n", code: exitFailed, says: []string{"not agreed to"}},
		"erase, but what":             {args: []string{"--erase", "--yes"}, code: exitFailed, says: []string{"isn't named"}},
		"the stick":                   {args: []string{"--disk", "STICK", "--erase", "--yes"}, code: exitFailed, says: []string{"runs from"}},
		"wrong serial":                {args: []string{"--disk", "NVME", "--yes"}, code: exitFailed, says: []string{`no disk has the serial number "NVME"`}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &stick{disks: stickDisks()}
			startStick(t, s)
			code, out, errs := runTyped(t, tc.typed, append([]string{"install", "box"}, tc.args...)...)
			if code != tc.code || s.wrote.Load() != tc.wrote {
				t.Errorf("exit %d, want %d; written %d times\n%s%s", code, tc.code, s.wrote.Load(), out, errs)
			}
			for _, text := range tc.says {
				if !strings.Contains(out+errs, text) {
					t.Errorf("doesn't say %q:\n%s%s", text, out, errs)
				}
			}
		})
	}
}

func TestHolds(t *testing.T) {
	part := func(kind string) *capsulev1.DiskContent {
		return &capsulev1.DiskContent{Where: "partition", Kind: kind, Label: "label"}
	}
	whole := func(kind string) *capsulev1.DiskContent { return &capsulev1.DiskContent{Kind: kind} }
	for want, contents := range map[string][]*capsulev1.DiskContent{
		"nothing":                nil,
		`ext4 "photos"`:          {{Kind: "ext4", Label: "photos"}},
		"GPT":                    {whole("GPT")},
		"GPT, 1 partition: NTFS": {whole("GPT"), part("NTFS")},
		"GPT, 4 partitions: FAT, NTFS, BitLocker": {whole("GPT"), part("FAT"), part("NTFS"), part("BitLocker"), part("NTFS")},
		"ISO 9660, MBR, 2 partitions: FAT":        {whole("ISO 9660"), whole("MBR"), part("FAT"), part("FAT")},
	} {
		if got := holds(&capsulev1.Disk{Contents: contents}); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Some adapters give all disks one serial number: then the worldwide name is what the
// disk goes by, to the end.
func TestInstallByWorldwideName(t *testing.T) {
	twins := stickDisks()[1:]
	for i := range twins {
		twins[i].Serial, twins[i].WWN = "0123456789", []string{"eui.1", "eui.2"}[i]
	}
	for name, tc := range map[string]struct {
		args  []string
		typed string
		code  int
		says  string
		wrote int32
	}{
		"by serial":         {args: []string{"--disk", "0123456789", "--yes"}, code: exitFailed, says: "nvme0n1 (eui.1), sdb (eui.2)"},
		"an empty one":      {args: []string{"--disk", "eui.1", "--yes"}, says: "installed on disk eui.1", wrote: 1},
		"a full one":        {args: []string{"--disk", "eui.2", "--yes"}, code: exitFailed, says: "--disk eui.2 --erase"},
		"a full one, typed": {args: []string{"--disk", "EUI.2", "--erase"}, typed: "eui.2\n", says: `Type "eui.2"`, wrote: 1},
		"the serial, typed": {args: []string{"--disk", "eui.2", "--erase"}, typed: "0123456789\n", code: exitFailed, says: "not agreed to"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &stick{disks: twins}
			startStick(t, s)
			code, out, errs := runTyped(t, tc.typed, append([]string{"install", "box"}, tc.args...)...)
			if code != tc.code || s.wrote.Load() != tc.wrote || !strings.Contains(out+errs, tc.says) {
				t.Errorf("exit %d, want %d; written %d times\n%s%s", code, tc.code, s.wrote.Load(), out, errs)
			}
		})
	}
}

// Who has claimed the machine installs again without a code, however it's named; who
// hasn't claims it, whatever was at that address before.
func TestInstallAgain(t *testing.T) {
	s := &stick{disks: stickDisks()}
	store, id := serveStick(t, s, "")
	putStranger(t, store, s.address)
	typed := string(id.Offer().Code) + "\n"
	for n, name := range []string{s.address, s.address, "capsule-test", "CAPSULE-TEST", "capsule-test.local", "Capsule-Test.Local"} {
		code, out, errs := runTyped(t, typed, "install", name, "--yes")
		if code != 0 || s.wrote.Load() != int32(n+1) || strings.Contains(errs, "Code on") != (n == 0) {
			t.Fatalf("%s: exit %d\n%s%s", name, code, out, errs)
		}
		typed = ""
	}
	// By its CA, where no name and no address tells.
	c, err := store.Get("capsule-test")
	if err != nil {
		t.Fatal(err)
	}
	c.Name, c.Host = "kitchen", "127.0.0.1:1"
	if err := store.Put(c); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete("capsule-test"); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := runTyped(t, "", "install", s.address, "--yes"); code != 0 || !strings.Contains(errs, "comes up as kitchen") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}

// A context of the very capsule, which lets it in no more, is no reason to go on.
func TestInstallRefused(t *testing.T) {
	s := &stick{disks: stickDisks()}
	startStick(t, s)
	store, err := contexts.Open("")
	if err != nil {
		t.Fatal(err)
	}
	box, err := store.Get("box")
	if err != nil {
		t.Fatal(err)
	}
	other := putStranger(t, store, s.address)
	box.Certificate, box.Key = other.Certificate, other.Key
	if err := store.Put(box); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := runTyped(t, "", "install", s.address, "--yes"); code != exitRefused || !strings.Contains(errs, "claimed already") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}

// putStranger saves a context of another capsule that was at this address.
func putStranger(t *testing.T, store *contexts.Store, host string) contexts.Context {
	t.Helper()
	ca, err := identity.NewCA("stranger")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.IssueOperator("bob", capsulev1.Role_ROLE_ADMIN, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c := contexts.Context{Name: "before", Host: host, CA: string(ca.CertPEM()), Certificate: string(pair.CertPEM), Key: string(pair.KeyPEM)}
	if err := store.Put(c); err != nil {
		t.Fatal(err)
	}
	return c
}

// What was shown is what is erased, or nothing is.
func TestInstallOfWhatChanged(t *testing.T) {
	s := &stick{disks: stickDisks(), change: true}
	startStick(t, s)
	if code, _, errs := runTyped(t, "", "install", "box", "--yes"); code != exitFailed || s.wrote.Load() != 0 {
		t.Errorf("exit %d: %s", code, errs)
	}
}

// The installer has no workloads, and a capsule no installer.
func TestInstallModes(t *testing.T) {
	s := &stick{disks: stickDisks()}
	startStick(t, s)
	for _, args := range [][]string{{"get"}, {"workload", "list"}, {"volume", "list"}, {"image", "list"}, {"capsule", "update", "status"}} {
		if code, out, errs := runTyped(t, "", append([]string{"--capsule", "box"}, args...)...); code != exitFailed || !strings.Contains(errs, "only installs") {
			t.Errorf("%v: exit %d: %s%s", args, code, out, errs)
		}
	}
	if code, out, errs := runTyped(t, "", "--capsule", "box", "capsule", "info"); code != 0 || !strings.Contains(out, "installer") {
		t.Errorf("info: exit %d: %s%s", code, out, errs)
	}
	dir := t.TempDir()
	var ends []func()
	t.Cleanup(func() {
		for _, end := range ends {
			end()
		}
	})
	c, err := startCapsule(dir, nil, func(end func()) { ends = append(ends, end) })
	if err != nil {
		t.Fatal(err)
	}
	if err := c.save(filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "capsule"), "other", capsulev1.Role_ROLE_ADMIN); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := runTyped(t, "", "install", "other", "--yes"); code != exitFailed || !strings.Contains(errs, "runs from its own disk") {
		t.Errorf("exit %d: %s", code, errs)
	}
}
