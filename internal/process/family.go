package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// familyLook is between two looks for what is left of a family: what was killed
// takes a moment to end, and what it was starting meanwhile is found then.
const familyLook = 5 * time.Millisecond

// KillFamily kills a process that leads a session, and all that it started: those
// of its session and the children of any of them, in other sessions too. It
// returns when none is left, or with ctx. A number that another process has by now,
// which leads no session, is left alone. What had left the session and lost its
// parent before is not found. The numbers are those that the file system of
// processes at proc shows.
func KillFamily(ctx context.Context, proc string, leader int) error {
	if leader <= 1 {
		return fmt.Errorf("no process %d leads a session of its own", leader)
	}
	found := map[int]bool{}
	look := time.NewTicker(familyLook)
	defer look.Stop()
	for {
		alive, err := family(proc, leader, found)
		if err != nil || len(alive) == 0 {
			return err
		}
		for _, pid := range alive {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// family lists those that live, and notes all in found: a child of one that was
// killed has another parent by then, but was found before.
func family(proc string, leader int, found map[int]bool) (alive []int, err error) {
	all, err := stats(proc)
	if err != nil {
		return nil, err
	}
	for grown := true; grown; {
		grown = false
		for pid, s := range all {
			if !found[pid] && (s.session == leader || found[s.parent]) {
				found[pid], grown = true, true
			}
		}
	}
	for pid := range found {
		// A number that was given anew is of none of them.
		if s, there := all[pid]; !there {
			delete(found, pid)
		} else if s.state != 'Z' && s.state != 'X' {
			alive = append(alive, pid)
		}
	}
	return alive, nil
}

// stats reads all processes; those that end meanwhile are left out.
func stats(proc string) (map[int]stat, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	all := map[int]stat{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join(proc, e.Name(), "stat"))
		if err != nil {
			continue
		}
		if s, err := parseStat(line); err == nil {
			all[pid] = s
		}
	}
	return all, nil
}
