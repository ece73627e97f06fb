// Command check runs in a machine of our kernel and root, and tries on the disk
// of each cut what a capsule does when it starts: by the same code.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/blocklog"
	"capsule/internal/dm"
	"capsule/internal/kmod"
	"capsule/test/powercut/plan"
)

// cutMax bounds one cut; a machine that starts may take longer, but not without
// reason. Most take a quarter of a minute, emulated and two side by side.
const cutMax = 15 * time.Minute

func main() {
	if err := checkAll(); err != nil {
		fmt.Fprintln(os.Stderr, "error: check:", err)
		os.Exit(1)
	}
}

func checkAll() error {
	p, err := readPlan()
	if err != nil {
		return err
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})))
	c, err := newChecker(p)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	for _, cut := range p.Cuts {
		result, err := c.try(cut)
		if err != nil { // nothing can be said of the cuts behind it
			return fmt.Errorf("%v: %w", cut, err)
		}
		line, err := json.Marshal(result)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s%s\n", plan.ResultMark, line)
		if err := out.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func readPlan() (p plan.Plan, err error) {
	device, err := deviceOf(plan.SerialPlan)
	if err != nil {
		return p, err
	}
	data, err := os.ReadFile(device)
	if err != nil {
		return p, err
	}
	return p, json.Unmarshal(data, &p)
}

// A checker takes one disk through the recording, and tries each cut on a
// snapshot of it.
type checker struct {
	plan    plan.Plan
	log     *blocklog.Log
	replay  *blocklog.Replayer
	base    string // device
	control *dm.Control
	proven  map[string]proof // of slots
}

func newChecker(p plan.Plan) (*checker, error) {
	modules, err := kmod.Open("/")
	if err != nil {
		return nil, err
	}
	names := []string{"dm_mod", "dm_thin_pool", "dm_snapshot"}
	if len(p.Systems) > 0 {
		names = append(names, "vfat", "nls_cp437", "nls_ascii")
		if err := mountFirmware(); err != nil {
			return nil, err
		}
	}
	if err := modules.Load(names...); err != nil {
		return nil, err
	}
	base, err := deviceOf(plan.SerialBase)
	if err != nil {
		return nil, err
	}
	logDevice, err := deviceOf(plan.SerialLog)
	if err != nil {
		return nil, err
	}
	recorded, err := os.Open(logDevice)
	if err != nil {
		return nil, err
	}
	log, err := blocklog.Read(recorded, p.LogBytes)
	if err != nil {
		return nil, err
	}
	disk, err := os.OpenFile(base, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	control, err := dm.Open()
	if err != nil {
		return nil, err
	}
	return &checker{
		plan: p, log: log, replay: blocklog.NewReplayer(log, blocklog.Disk{File: disk}), base: base, control: control,
		proven: map[string]proof{},
	}, nil
}

// deviceOf finds a disk by its serial number.
func deviceOf(serial string) (string, error) {
	files, err := filepath.Glob("/sys/block/*/serial")
	if err != nil {
		return "", err
	}
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == serial {
			return "/dev/" + filepath.Base(filepath.Dir(file)), nil
		}
	}
	return "", fmt.Errorf("no disk with serial number %q", serial)
}

// try checks one cut. An error is one of the check itself.
func (c *checker) try(cut blocklog.Cut) (plan.Result, error) {
	began := time.Now()
	s, err := c.cutDisk(cut)
	if err != nil {
		return plan.Result{}, errors.Join(err, s.remove())
	}
	ctx, cancel := context.WithTimeout(context.Background(), cutMax)
	defer cancel()
	b := &boot{plan: c.plan, cut: cut, disk: s, log: c.log, proven: c.proven, clones: map[string]string{}}
	result := plan.Result{Cut: cut}
	if err := b.run(ctx); err != nil {
		result.Problem = err.Error()
	}
	result.Stage, result.Facts = b.stage, b.facts
	if err := errors.Join(b.end(), s.remove()); err != nil {
		return result, fmt.Errorf("clean up: %w (problem: %q)", err, result.Problem)
	}
	result.Millis = time.Since(began).Milliseconds()
	return result, nil
}

// cutDisk takes the base to the cut's base and makes a snapshot of it, on which
// the rest is replayed.
func (c *checker) cutDisk(cut blocklog.Cut) (*cutDisk, error) {
	s := &cutDisk{control: c.control}
	base, err := c.log.Base(cut)
	if err != nil {
		return s, err
	}
	if err := c.replay.Forward(base); err != nil {
		return s, err
	}
	if err := flush(c.base); err != nil {
		return s, err
	}
	if err := s.create(c.base, c.plan.DiskBytes(cut.N)); err != nil {
		return s, err
	}
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return s, err
	}
	return s, errors.Join(c.replay.Rest(blocklog.Disk{File: f}, cut), f.Sync(), f.Close())
}

// flush writes out what the page cache keeps of a device, which those above it
// don't see.
func flush(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0), f.Close())
}

// sizeOf a device or a file, in bytes.
func sizeOf(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}
