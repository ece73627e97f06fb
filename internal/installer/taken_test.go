package installer

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
)

// After the last step a disk boots and is known to have the identity, or it doesn't
// boot; when that can't be told, it counts as having it.
func TestLastStep(t *testing.T) {
	src := source(t)
	const size = disk.NeededBytes
	target := disk.Device{Name: "nvme0n1", Serial: "NVME1", WWN: "eui.1", Bytes: size, Sector: 512}
	const all = 5 // writes of the last step
	type outcome int
	const (
		boots outcome = iota
		undone
		unknown
	)
	cases := map[string]struct {
		spoil func(*fakeDisk)
		want  outcome
	}{
		"nobody waits any more": {func(*fakeDisk) {}, boots},
		"it can't be read back": {func(d *fakeDisk) { d.blind = true }, undone},
		"no power":              {func(d *fakeDisk) { d.left = 0 }, unknown},
		"no power at its end":   {func(d *fakeDisk) { d.left = all - 1 }, unknown},
		"no power while undone": {func(d *fakeDisk) { d.blind, d.left = true, all }, unknown},
	}
	for n := range all {
		cases["write "+string(rune('1'+n))+" fails"] = struct {
			spoil func(*fakeDisk)
			want  outcome
		}{func(d *fakeDisk) { d.fails = d.writes + n }, undone}
		cases["write "+string(rune('1'+n))+" is lost"] = struct {
			spoil func(*fakeDisk)
			want  outcome
		}{func(d *fakeDisk) { d.forget = d.writes + n }, undone}
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			i := New(Options{Log: slog.New(slog.DiscardHandler)})
			i.takenFile = filepath.Join(t.TempDir(), "capsule", "taken")
			ctx, stop := context.WithCancel(t.Context())
			d := emptyDisk(t, size, true)
			w := newWriter(ctx, d, newTable(t, 512, size), src, func(p Progress) {
				if p.Step == "write the partition table" {
					stop()
				}
			})
			if err := w.fill(); err != nil {
				t.Fatal(err)
			}
			tc.spoil(d)
			err := i.finish(w, target)
			restarted := New(Options{})
			restarted.takenFile = i.takenFile
			taken, failed := restarted.taken()
			if failed != nil {
				t.Fatal(failed)
			}
			if (err == nil) != (tc.want == boots) || errors.Is(err, errMayBoot) != (tc.want == unknown) {
				t.Errorf("%v", err)
			}
			if (taken != nil) != (tc.want != undone) {
				t.Errorf("taken: %v", taken)
			}
			switch tc.want {
			case boots:
				whole(t, d, 512, size, src)
			case undone:
				first := make([]byte, 512)
				if _, err := d.ReadAt(first, 0); err != nil || !bytes.Equal(first, disk.UnfinishedMark(512)) {
					t.Errorf("the first sector isn't our mark: %q, %v", first, err)
				}
				if contents, err := disk.Contents(d, 512, size); err != nil || len(contents) > 0 {
					t.Errorf("the disk holds %v, %v", contents, err)
				}
			}
		})
	}
}

// A stop before the last step leaves nothing that boots.
func TestStopBeforeTheLastStep(t *testing.T) {
	const size = disk.NeededBytes
	ctx, stop := context.WithCancel(t.Context())
	d := emptyDisk(t, size, false)
	w := newWriter(ctx, d, newTable(t, 512, size), source(t), nil)
	if err := w.fill(); err != nil {
		t.Fatal(err)
	}
	stop()
	before := d.writes
	if err := w.finish(); !errors.Is(err, context.Canceled) || d.writes != before {
		t.Errorf("%v, %d writes", err, d.writes-before)
	}
}

func TestOnce(t *testing.T) {
	twin := with(blank, func(c *Candidate) { c.WWN = "eui.2" })
	plan := func(c Candidate) Plan { return Plan{Disk: c, Digest: digest(c)} }
	refused := errdefs.ErrNotFound // by the plan
	for name, tc := range map[string]struct {
		taken  *Candidate
		plan   Plan
		choice Choice
		err    error
		says   string // "" when it goes on
	}{
		"the first":                      {plan: plan(blank)},
		"the same":                       {taken: &blank, plan: plan(blank)},
		"the same under another name":    {taken: &blank, plan: plan(with(blank, func(c *Candidate) { c.Name = "sdx" }))},
		"another":                        {taken: &blank, plan: plan(data), says: "identity already"},
		"another of the same serial":     {taken: &blank, plan: plan(twin), says: "identity already"},
		"none that is empty any more":    {taken: &blank, err: refused, says: "identity already"},
		"the same, but not to be erased": {taken: &blank, err: refused, choice: Choice{Disk: "NVME1"}, says: "not found"},
		"none, and none was":             {err: refused, says: "not found"},
	} {
		t.Run(name, func(t *testing.T) {
			i := New(Options{})
			i.takenFile = filepath.Join(t.TempDir(), "taken")
			if tc.taken != nil {
				if err := i.take(tc.taken.Device); err != nil {
					t.Fatal(err)
				}
			}
			_, err := i.once(tc.plan, tc.choice, tc.err)
			if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Error(err)
			}
		})
	}
}

// A seed that may be on the stick is no small thing: the caller hears of it.
func TestDropSeedFails(t *testing.T) {
	i := New(Options{Boot: disk.Boot{ESP: filepath.Join(t.TempDir(), "none")}})
	if err := i.dropSeed(); err == nil {
		t.Error("nobody is told")
	}
}
