//go:build machine

package powercut

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/imagetest"
	"capsule/test/powercut/plan"
)

const (
	imageName = "docker.io/library/app:1"
	// Sizes of the volumes, before and after growing.
	volumeBytes = 64 << 20
	grownBytes  = 128 << 20
	hugeBytes   = 1 << 30 // more than the pool
	fillMiB     = 3

	appManifest = "kind: Container\nname: " + plan.App + "\nimage: app:1\nmounts:\n  - \"" + plan.Photos + ":" + plan.MountPath + "\"\n"
)

// work is what an operator does while the writes are recorded. The quick form
// leaves out what takes another boot.
func (r *recording) work(quick bool) {
	r.push()
	r.storeWrites("before", 3)
	r.makeVolume()
	one := r.snapshot()
	r.changeAndGrow()
	r.cloneAndDelete()
	r.restore(one)
	if !quick {
		r.fillPool()
		r.growPool()
	}
	r.storeWrites("after", 3)
	r.deleteAll()
}

// push brings the image whose content fills a volume.
func (r *recording) push() {
	r.holds(plan.Fact{File: "machine-id"})
	r.holds(plan.Fact{File: "state.db"})
	image := imagetest.PayloadImage(r.t, []string{"print", "ready", "then", "sleep", "10h"},
		imagetest.NewLayer().Owner(plan.SeedOwner, plan.SeedOwner).Dir(plan.MountPath[1:], plan.FolderMode).
			File(filepath.Join(plan.MountPath[1:], plan.SeedFile), plan.SeedMode, plan.SeedText))
	archive := filepath.Join(r.dir, "image.tar")
	if err := os.WriteFile(archive, imagetest.DockerSave(image, "app:1"), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.step("image push", func() error { return r.ctl("image", "push", archive) })
	r.holds(plan.Fact{Image: imageName})
}

// storeWrites are changes of the state alone.
func (r *recording) storeWrites(when string, count int) {
	for i := range count {
		value := when + fmt.Sprint(i)
		r.ends(r.idle)
		r.step("apply "+value, func() error {
			return r.apply("kind: Container\nname: idle\nimage: app:1\nrestart: never\nargs: [\"true\"]\nenv:\n  N: \"" + value + "\"\n")
		})
		r.idle = r.holds(plan.Fact{Object: &plan.Object{Kind: "Container", Name: "idle", Env: map[string]string{"N": value}}})
	}
}

// makeVolume makes a volume, mounts it for the first time and writes to it.
func (r *recording) makeVolume() {
	r.step("volume create", func() error {
		return r.ctl("volume", "create", plan.Photos, "--size", fmt.Sprint(volumeBytes, "B"), "--wait")
	})
	r.size = r.holds(plan.Fact{Object: &plan.Object{Kind: "Volume", Name: plan.Photos, SizeBytes: volumeBytes}})
	r.step("first mount", func() error { return r.apply(appManifest, "--wait") })
	r.has("", plan.SeedFile, []byte(plan.SeedText)).Content.Owner = fmt.Sprintf("%d:%d %#o", plan.SeedOwner, plan.SeedOwner, plan.SeedMode)
	r.write("a", "first")
	r.fill("big")
}

// snapshot keeps the volume as it is, and gives what that is.
func (r *recording) snapshot() map[string][]byte {
	then := map[string][]byte{}
	r.step("snapshot", func() error { return r.ctl("volume", "snapshot", plan.Photos, "one") })
	r.snapshots = append(r.snapshots, r.holds(plan.Fact{Snapshot: &plan.Snapshot{Volume: plan.Photos, Name: "one"}}))
	for path, f := range r.live {
		then[path] = f.data
		r.snapshots = append(r.snapshots, r.has("one", path, f.data))
	}
	return then
}

func (r *recording) changeAndGrow() {
	r.write("a", "second")
	r.ends(r.size)
	r.step("grow", func() error {
		return r.ctl("volume", "resize", plan.Photos, fmt.Sprint(grownBytes, "B"), "--wait")
	})
	r.size = r.holds(plan.Fact{Object: &plan.Object{Kind: "Volume", Name: plan.Photos, SizeBytes: grownBytes}})
	r.write("b", "after growing")
}

// cloneAndDelete makes two more volumes and removes one.
func (r *recording) cloneAndDelete() {
	r.step("clone", func() error { return r.ctl("volume", "clone", plan.Photos, "copy", "--snapshot", "one") })
	for _, f := range r.snapshots {
		if f.Content != nil {
			content := *f.Content
			content.Volume, content.Snapshot = "copy", ""
			r.copied = append(r.copied, r.holds(plan.Fact{Content: &content}))
		}
	}
	r.step("second volume create", func() error {
		return r.ctl("volume", "create", "notes", "--size", fmt.Sprint(volumeBytes, "B"), "--wait")
	})
	notes := r.holds(plan.Fact{Object: &plan.Object{Kind: "Volume", Name: "notes", SizeBytes: volumeBytes}})
	r.ends(notes)
	r.step("volume delete", func() error { return r.ctl("volume", "delete", "notes") })
	r.holds(plan.Fact{Object: &plan.Object{Kind: "Volume", Name: "notes", Gone: true}})
}

// restore makes the volume what it was. What it is now is kept as a snapshot.
func (r *recording) restore(then map[string][]byte) {
	r.step("workload stop", func() error { return r.ctl("workload", "stop", plan.App, "--wait") })
	before := r.live
	r.live = map[string]*liveFile{}
	for _, f := range before {
		r.ends(f.fact)
	}
	r.ends(r.size) // the snapshot's size was the old one
	var kept string
	r.step("restore", func() error {
		answer, err := capsulev1.NewVolumeServiceClient(r.conn).Restore(r.ctx, &capsulev1.RestoreRequest{Volume: plan.Photos, Snapshot: "one"})
		kept = answer.GetKept().GetName()
		return err
	})
	for path, data := range then {
		r.has("", path, data)
	}
	r.holds(plan.Fact{Content: &plan.Content{Volume: plan.Photos, Path: "b", Gone: true}})
	for path, f := range before {
		r.has(kept, path, f.data)
	}
	r.step("workload start", func() error { return r.ctl("workload", "start", plan.App, "--wait") })
	r.write("c", "after restoring")
	r.ends(r.snapshots...)
	r.step("delete snapshot", func() error { return r.ctl("volume", "delete-snapshot", plan.Photos, "one") })
	r.holds(plan.Fact{Snapshot: &plan.Snapshot{Volume: plan.Photos, Name: "one", Gone: true}})
}

// fillPool writes to a volume that is larger than the pool until nothing more can
// be written. What was there before stays.
func (r *recording) fillPool() {
	r.step("grow beyond the pool", func() error {
		return r.ctl("volume", "resize", plan.Photos, sizeText(hugeBytes), "--wait")
	})
	r.step("fill the pool", func() error {
		err := r.ctl("workload", "exec", plan.App, "--", "/payload", "fill", filepath.Join(plan.MountPath, "full"), fmt.Sprint(hugeBytes>>20))
		if err == nil {
			return fmt.Errorf("the pool took %d MiB", hugeBytes>>20)
		}
		r.t.Log(err)
		return nil
	})
}

// storageUses is what a capsule says when it uses a disk that has grown.
var storageUses = regexp.MustCompile(`storage uses [0-9]+ MiB of the disk`)

// growPool makes the disk larger and starts the machine anew.
func (r *recording) growPool() {
	r.disks = append(r.disks, plan.Disk{Bytes: diskGrown})
	r.grownAt = r.logged()
	r.step("pool growth", func() error {
		if err := r.machine.GrowDisk(r.ctx, diskGrown); err != nil {
			return err
		}
		if err := r.ctl("capsule", "reboot"); err != nil {
			return err
		}
		if err := r.awaitConsole(storageUses, 4*time.Minute); err != nil {
			return err
		}
		return r.machine.WaitReady(r.ctx)
	})
	r.step("look at the pool", func() error {
		answer, err := capsulev1.NewVolumeServiceClient(r.conn).Pool(r.ctx, &capsulev1.PoolRequest{})
		r.pool = answer.GetPool().GetSize()
		return err
	})
	r.holds(plan.Fact{PoolBytes: r.pool})
	r.step("mount after the boot", r.awaitApp)
	r.step("free the pool", func() error {
		return r.ctl("workload", "exec", plan.App, "--", "/payload", "rm", filepath.Join(plan.MountPath, "full"))
	})
	r.write("d", "after the pool grew")
}

// awaitApp waits until a program runs in the workload again.
func (r *recording) awaitApp() error {
	ctx, cancel := context.WithTimeout(r.ctx, 4*time.Minute)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		err := r.ctl("workload", "exec", plan.App, "--", "/payload", "true")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// deleteAll takes away what was made.
func (r *recording) deleteAll() {
	r.ends(r.copied...)
	r.step("delete the clone", func() error { return r.ctl("volume", "delete", "copy") })
	r.holds(plan.Fact{Object: &plan.Object{Kind: "Volume", Name: "copy", Gone: true}})
	r.step("delete workload", func() error { return r.ctl("workload", "delete", plan.App, "--wait") })
	r.holds(plan.Fact{Object: &plan.Object{Kind: "Container", Name: plan.App, Gone: true}})
}

// A liveFile is what the volume holds at the moment.
type liveFile struct {
	data []byte
	fact *fact
}

// has notes that a file has this content since the last step: in the volume, or
// in a snapshot of it.
func (r *recording) has(snapshot, path string, data []byte) *fact {
	f := r.holds(plan.Fact{Content: &plan.Content{
		Volume: plan.Photos, Snapshot: snapshot, Path: path, SHA256: fmt.Sprintf("%x", sha256.Sum256(data)),
	}})
	if snapshot == "" {
		r.live[path] = &liveFile{data, f}
	}
	return f
}

// write writes and syncs a file in the container.
func (r *recording) write(path, text string) {
	r.put(path, []byte(text+"\n"), "write", text)
}

// fill does so with much data, in several steps.
func (r *recording) fill(path string) {
	var data []byte
	for n := range fillMiB { // as the payload's verb
		block := make([]byte, 1<<20)
		for i := range block {
			block[i] = byte(n + i>>8 + 1)
		}
		data = append(data, block...)
	}
	r.put(path, data, "fill", fmt.Sprint(fillMiB))
}

func (r *recording) put(path string, data []byte, verb, argument string) {
	if old := r.live[path]; old != nil {
		r.ends(old.fact)
	}
	r.step(verb+" "+path, func() error {
		return r.ctl("workload", "exec", plan.App, "--", "/payload", verb, filepath.Join(plan.MountPath, path), argument)
	})
	r.has("", path, bytes.Clone(data))
}

// awaitConsole waits until the console shows it.
func (r *recording) awaitConsole(want *regexp.Regexp, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(r.ctx, limit)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		log, err := os.ReadFile(r.machine.ConsoleLog())
		if err != nil || want.Match(log) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the console never showed %q: %w", want, ctx.Err())
		case <-tick.C:
		}
	}
}

func sizeText(bytes int64) string { return fmt.Sprintf("%dMiB", bytes>>20) }
