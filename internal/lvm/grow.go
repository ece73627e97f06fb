package lvm

import (
	"context"

	"capsule/internal/ext4"
)

// A growth is what a plan gives beyond what a group has now; zero where nothing
// is to be done.
type growth struct{ perm, pool, metadata uint64 }

// wanted compares a group with the plan for its size. Volumes that were extended
// beyond the plan stay, and gains under growMin wait.
func wanted(s state) growth {
	l := plan(s.home, s.size, s.extent)
	var g growth
	if have := s.volumes[Perm]; have > 0 && min(l.perm, have+s.homeFree) >= have+growMin {
		g.perm = min(l.perm, have+s.homeFree)
	}
	if have := s.volumes[Pool]; have > 0 && l.pool >= have+growMin {
		g.pool = l.pool
	}
	if have := s.volumes[Pool+"_tmeta"]; have > 0 && l.metadata > have {
		g.metadata = l.metadata
	}
	return g
}

// Grow extends the group to its disks, of which home is PERM, and perm and the pool by
// plan. perm is mounted at dir and stays in use, and on home: without the other disks
// the machine comes up all the same. Every step can be cut and repeated.
func Grow(ctx context.Context, dir, home string, others ...string) error {
	if _, err := command(ctx, append([]string{"pvresize", home}, others...)...); err != nil {
		return err
	}
	s, err := readState(ctx, home)
	if err != nil {
		return err
	}
	g := wanted(s)
	for _, step := range []struct {
		to   uint64
		args []string
	}{
		{g.perm, []string{"lvextend", "-y", "-L", bytesArg(g.perm), Group + "/" + Perm, home}},
		{g.metadata, []string{"lvextend", "-y", "--poolmetadatasize", "+" + bytesArg(g.metadata-s.volumes[Pool+"_tmeta"]), Group + "/" + Pool}},
		{g.pool, []string{"lvextend", "-y", "-L", bytesArg(g.pool), Group + "/" + Pool}},
	} {
		if step.to == 0 {
			continue
		}
		if _, err := command(ctx, step.args...); err != nil {
			return err
		}
	}
	_, err = ext4.Grow(dir)
	return err
}
