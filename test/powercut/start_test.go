//go:build machine

package powercut

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/blocklog"
	"capsule/internal/lab"
	"capsule/test/powercut/plan"
)

// sweepStarts are how many cut disks the sweep starts.
const sweepStarts = 10

// A started disk is one that a machine was started from.
type started struct {
	cut     blocklog.Cut
	version string // that came up
	problem string
	took    time.Duration
}

// startSome starts real machines from disks that were cut at the updates, by chance
// out of those that were checked. again also pushes the other version there.
func (r *recording) startSome(l *blocklog.Log, p plan.Plan, count int, again bool, s *summary) {
	var cuts []blocklog.Cut
	for _, c := range s.results {
		if p.Updates(c.Cut) {
			cuts = append(cuts, c.Cut)
		}
	}
	random := rand.New(rand.NewPCG(s.seed, 2))
	random.Shuffle(len(cuts), func(i, j int) { cuts[i], cuts[j] = cuts[j], cuts[i] })
	for _, cut := range cuts[:min(count, len(cuts))] {
		began := time.Now()
		version, err := r.startCut(l, p, cut, again)
		done := started{cut: cut, version: version, took: time.Since(began)}
		if err != nil {
			done.problem = err.Error()
			r.t.Errorf("start of cut %v: %v", cut, err)
		} else {
			r.t.Logf("start of cut %v: version %s, %.1f s", cut, version, done.took.Seconds())
		}
		s.started = append(s.started, done)
	}
}

// startCut makes the disk of a cut, starts a machine from it and looks what came up.
func (r *recording) startCut(l *blocklog.Log, p plan.Plan, cut blocklog.Cut, again bool) (version string, err error) {
	disk := filepath.Join(r.dir, "cut.img")
	if err := r.makeDisk(l, cut, disk); err != nil {
		return "", err
	}
	m, err := r.machine.Twin(r.ctx, "cut", disk)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\nconsole:\n%s", err, tailOf(m.ConsoleLog()))
		}
		ctx := context.WithoutCancel(r.ctx)
		err = errors.Join(err, m.Kill(ctx), m.Down(ctx, false))
	}()
	if err := errors.Join(m.Start(r.ctx), m.WaitReady(r.ctx)); err != nil {
		return "", err
	}
	c, err := m.Context()
	if err != nil {
		return "", err
	}
	conn, err := c.Dial()
	if err != nil {
		return "", err
	}
	defer conn.Close()
	status, err := r.checkStarted(conn, p, cut)
	if err == nil && again {
		err = errors.Join(r.saveContext(c), r.pushAgain(m, conn, status))
	}
	return status.GetVersion(), err
}

// makeDisk replays the recording onto a copy of the first disk.
func (r *recording) makeDisk(l *blocklog.Log, cut blocklog.Cut, path string) error {
	out, err := exec.CommandContext(r.ctx, "cp", "--sparse=always", r.machine.BaseDisk(), path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copy the first disk: %w: %s", err, out)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(blocklog.Replay(l, blocklog.Disk{File: f}, cut), f.Close())
}

// checkStarted wants one of both versions in its own slot: the one that was promised,
// if one was.
func (r *recording) checkStarted(conn *grpc.ClientConn, p plan.Plan, cut blocklog.Cut) (*capsulev1.UpdateServiceStatusResponse, error) {
	ctx, cancel := context.WithTimeout(r.ctx, time.Minute)
	defer cancel()
	s, err := capsulev1.NewUpdateServiceClient(conn).Status(ctx, &capsulev1.UpdateServiceStatusRequest{})
	if err != nil {
		return nil, err
	}
	want := map[string]string{r.systems[0].Version: "slot_a", r.systems[1].Version: "slot_b"}
	if want[s.GetVersion()] != s.GetSlot() || s.GetSlot() == "" {
		return s, fmt.Errorf("version %s runs in %s, want one of %v", s.GetVersion(), s.GetSlot(), want)
	}
	for _, f := range p.Facts {
		if f.Starts != nil && f.Holds(cut.N) && f.Starts.Version != s.GetVersion() {
			return s, fmt.Errorf("version %s runs, and %q promised %s", s.GetVersion(), f.Said, f.Starts.Version)
		}
	}
	return s, nil
}

// pushAgain brings the version that doesn't run, and keeps it.
func (r *recording) pushAgain(m *lab.Machine, conn *grpc.ClientConn, s *capsulev1.UpdateServiceStatusResponse) error {
	other, file := r.systems[1].Version, r.bundle
	if s.GetVersion() == other {
		older, err := r.olderBundle()
		if err != nil {
			return err
		}
		other, file = r.systems[0].Version, older
	}
	if s.GetTentative() != nil {
		if err := r.ctlOf(m, "capsule", "update", "confirm"); err != nil {
			return err
		}
	}
	if err := r.ctlOf(m, "capsule", "update", "push", file, "--force", "--allow-downgrade"); err != nil {
		return err
	}
	if err := awaitSystem(r.ctx, conn, other); err != nil {
		return err
	}
	return r.ctlOf(m, "capsule", "update", "confirm")
}

// tailOf is the end of a text file.
func tailOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, 1<<20)) // what there is of it
	return string(text[max(0, len(text)-4000):])
}
