package lvm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"capsule/internal/dm"
	"capsule/internal/ext4"
	"capsule/internal/lvm"
	"capsule/internal/lvm/lvmtest"
)

// killed runs an lvm command and kills it at the moment that now tells, or finds it
// ended.
func killed(t *testing.T, now func() bool, args ...string) {
	t.Helper()
	cmd := exec.Command("lvm", args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	for {
		select {
		case <-ended:
			return
		default:
		}
		if now() {
			_ = cmd.Process.Kill()
			<-ended
			return
		}
	}
}

// committed tells when the group's metadata has changed on the disk: where the
// valid one lies stands 40 bytes into the header of the first copy, in the second
// 4 KiB (lib/format_text/layout.h of lvm).
func committed(t *testing.T) func() bool {
	t.Helper()
	disk, err := os.OpenFile(lvmtest.Disk, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	b := aligned(4096)
	look := func() []byte {
		if _, err := disk.ReadAt(b, 4096); err != nil {
			t.Fatal(err)
		}
		return bytes.Clone(b[40:64])
	}
	before := look()
	return func() bool { return !bytes.Equal(before, look()) }
}

// A thin is what lvm's metadata says of a volume, or of the pool.
type thin struct{ id, transaction string }

func thins(t *testing.T) map[string]thin {
	t.Helper()
	out := lvmtest.Command(t, "lvs", "--reportformat", "json", "-o", "lv_name,thin_id,transaction_id", lvm.Group)
	var r struct {
		Report []struct{ LV []map[string]string }
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	all := map[string]thin{}
	for _, row := range r.Report[0].LV {
		all[row["lv_name"]] = thin{row["thin_id"], row["transaction_id"]}
	}
	return all
}

// poolDevice is the pool, which has a device of its own as soon as a volume is
// active.
func poolDevice(t *testing.T, c *dm.Control) string {
	t.Helper()
	const layer = "capsule-thinpool-tpool"
	if _, err := c.Status(layer); err == nil {
		return layer
	}
	return "capsule-thinpool"
}

func control(t *testing.T) *dm.Control {
	t.Helper()
	c, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// transaction is the last one that the pool knows.
func transaction(t *testing.T, c *dm.Control) string {
	t.Helper()
	d, err := c.Status(poolDevice(t, c))
	if err != nil {
		t.Fatal(err)
	}
	id, _, _ := strings.Cut(d.Targets[0].Params, " ")
	return id
}

// half makes a volume as far as lvm's metadata, by killing the lvm that makes it.
func half(t *testing.T, c *dm.Control, name string, args ...string) {
	t.Helper()
	for range 20 {
		killed(t, committed(t), append(append([]string{"lvcreate", "-y"}, args...), "-n", name)...)
		if err := lvm.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if v, ok := thins(t)[name]; ok && v.transaction == transaction(t, c) {
			if c.Message(poolDevice(t, c), "delete "+v.id) == nil { // told already
				t.Log("created before it was killed")
			}
			return
		}
		if err := lvm.RemoveThin(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("never killed in time")
}

// canBeMade removes what is left of a volume, and makes and removes it.
func canBeMade(t *testing.T, name string) {
	t.Helper()
	if err := lvm.RemoveThin(t.Context(), name); err != nil {
		t.Error(err)
	}
	if err := lvm.CreateThin(t.Context(), name, 64*mib); err != nil {
		t.Error(err)
	}
	if err := lvm.RemoveThin(t.Context(), name); err != nil {
		t.Error(err)
	}
}

// A cut in the middle of making a volume leaves it in one of three states. From all
// of them a start brings up the pool and all other volumes, the half-made one can be
// removed, and volumes can be made again.
func TestHalfMade(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	ctx, c := t.Context(), control(t)
	const origin, name = "vol-a.000001", "vol-b.000002"
	makeVolume(t, origin, 64*mib)
	for kind, args := range map[string][]string{
		"volume":   {"-V", "64m", "--thinpool", lvm.Pool, lvm.Group},
		"snapshot": {"--type", "thin", "-ky", lvm.Group + "/" + origin},
		"clone":    {"--type", "thin", "-kn", lvm.Group + "/" + origin},
	} {
		for _, steps := range []string{"noted", "noted, created", "noted, created, numbered"} {
			if testing.Short() && kind+steps != "volumenoted" && kind+steps != "clonenoted, created" {
				continue // the two that hurt most
			}
			t.Run(kind+" "+steps, func(t *testing.T) {
				half(t, c, name, args...)
				advance(t, c, steps, origin, name, kind == "volume")
				if err := lvm.Deactivate(ctx); err != nil {
					t.Fatal(err)
				}
				look, err := lvm.Activate(ctx)
				t.Log("activated:", look, err)
				if err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(lvm.Device(origin)); err != nil {
					t.Error("the other volume isn't active:", err)
				}
				canBeMade(t, name)
			})
		}
	}
	if err := ext4.Check(ctx, lvm.Device(origin)); err != nil {
		t.Error(err)
	}
	want := map[string]thin{origin: thins(t)[origin], lvm.Pool: {"", transaction(t, c)}}
	if diff := cmp.Diff(want, thins(t), cmp.AllowUnexported(thin{})); diff != "" {
		t.Error(diff)
	}
}

// The same of the first volume of all, when the pool has no other.
func TestFirstHalfMade(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	ctx, c := t.Context(), control(t)
	const name = "vol-a.000001"
	half(t, c, name, "-V", "64m", "--thinpool", lvm.Pool, lvm.Group)
	advance(t, c, "noted, created", "", name, true)
	if err := lvm.Deactivate(ctx); err != nil {
		t.Fatal(err)
	}
	look, err := lvm.Activate(ctx)
	t.Log("activated:", look, err, poolDevice(t, c))
	if err := lvm.RemoveThin(ctx, name); err != nil {
		t.Error(err)
	}
	if err := lvm.CreateThin(ctx, name, 64*mib); err != nil {
		t.Error(err)
	}
}

// advance tells the pool what lvm would have told it next.
func advance(t *testing.T, c *dm.Control, steps, origin, name string, empty bool) {
	t.Helper()
	all := thins(t)
	if strings.Contains(steps, "created") {
		text := "create_snap " + all[name].id + " " + all[origin].id
		if empty {
			text = "create_thin " + all[name].id
		}
		if err := c.Message(poolDevice(t, c), text); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(steps, "numbered") {
		if err := c.Message(poolDevice(t, c), "set_transaction_id "+transaction(t, c)+" "+all[lvm.Pool].transaction); err != nil {
			t.Fatal(err)
		}
	}
}

// The same with the origin still suspended, as a killed lvm leaves it when only the
// daemon goes down: its users go on, then the rest can be removed.
func TestResumeHalfMade(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	ctx, c := t.Context(), control(t)
	const origin, name = "vol-a.000001", "snap-a.000002"
	makeVolume(t, origin, 64*mib)
	for _, steps := range []string{"noted", "noted, created", "noted, created, numbered"} {
		t.Run(steps, func(t *testing.T) {
			half(t, c, name, "--type", "thin", "-ky", lvm.Group+"/"+origin)
			advance(t, c, steps, origin, name, false)
			if err := c.Suspend("capsule-vol--a.000001"); err != nil {
				t.Fatal(err)
			}
			if err := lvm.Resume(ctx); err != nil {
				t.Error(err)
			}
			if d, err := c.Status("capsule-vol--a.000001"); err != nil || d.Suspended {
				t.Error(d, err)
			}
			canBeMade(t, name)
		})
	}
}

// An lvm that is killed while it has a volume suspended leaves its users hanging;
// Resume lets them go on, by the size that the group's metadata has.
func TestResume(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	ctx, c := t.Context(), control(t)
	const name, snap, device = "vol-a.000001", "snap-a.000002", "capsule-vol--a.000001"
	makeVolume(t, name, 64*mib)
	dir, _ := mount(t, name)
	writes, stop := writer(t, filepath.Join(dir, "log"))
	hangs := func() bool {
		d, err := c.Status(device)
		return err == nil && d.Suspended
	}
	hung := 0
	for i := 0; hung < 3 && i < 30; i++ {
		args := []string{"lvextend", "-y", "-L", "+4m", lvm.Group + "/" + name}
		if i%3 == 0 {
			args = []string{"lvcreate", "-y", "--type", "thin", "-ky", "-n", snap, lvm.Group + "/" + name}
			if err := lvm.RemoveThin(ctx, snap); err != nil {
				t.Fatal(err)
			}
		}
		writes(1)
		killed(t, hangs, args...)
		if hangs() {
			hung++
		}
		if err := lvm.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		writes(3)
		d, err := c.Status(device)
		if err != nil || d.Suspended {
			t.Fatal(d, err)
		}
		for _, v := range must(t, lvm.List)(ctx) {
			if v.Name == name && v.SizeBytes != int64(d.Targets[0].Sectors)*512 {
				t.Errorf("%d: %d bytes by lvm, %d by the kernel", i, v.SizeBytes, d.Targets[0].Sectors*512)
			}
		}
	}
	if hung == 0 {
		t.Error("nothing was killed in time")
	}
	if err := stop(); err != nil {
		t.Error("writer:", err)
	}
	if err := lvm.RemoveThin(ctx, snap); err != nil {
		t.Error(err)
	}
	if err := lvm.ExtendThin(ctx, name, 256*mib); err != nil {
		t.Error(err)
	}
	timed(t, "nothing to resume", func() error { return lvm.Resume(ctx) })
}

func must[T any](t *testing.T, f func(context.Context) (T, error)) func(context.Context) T {
	return func(ctx context.Context) T {
		t.Helper()
		v, err := f(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
