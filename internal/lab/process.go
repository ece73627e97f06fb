//go:build unix

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	capsulev1 "capsule/api/capsule/v1"
)

// pollEvery is between looks at a process that is not our child, of whose end
// nothing tells us.
const pollEvery = 50 * time.Millisecond

// apiMax bounds the polite request to shut down.
const apiMax = 30 * time.Second

// Running tells whether the machine's QEMU is alive. QEMU locks its pid file
// while it lives, so a pid that was given to another process can't mislead.
func (m *Machine) Running() bool { return m.PID() != 0 }

// PID of the machine's QEMU, 0 when it does not run.
func (m *Machine) PID() int {
	f, err := os.Open(m.path("qemu.pid"))
	if err != nil {
		return 0
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), getLock, &lock); err != nil || lock.Type == unix.F_UNLCK {
		return 0
	}
	data := make([]byte, 20)
	n, _ := f.Read(data) //nolint:errcheck // an empty file is no pid
	pid, err := strconv.Atoi(strings.TrimSpace(string(data[:n])))
	if err != nil {
		return 0
	}
	return pid
}

// Kill cuts the power: QEMU gets SIGKILL.
func (m *Machine) Kill(ctx context.Context) error {
	pid := m.PID()
	if pid == 0 {
		return nil
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill machine %q: %w", m.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, killMax)
	defer cancel()
	if err := m.waitStopped(ctx); err != nil {
		return fmt.Errorf("kill machine %q: %w", m.Name, err)
	}
	return nil
}

// Shutdown asks the capsule to power off and waits for it; the power is cut
// when it does not answer or does not end.
func (m *Machine) Shutdown(ctx context.Context) error {
	if !m.Running() {
		return nil
	}
	if err := m.askShutdown(ctx); err != nil {
		m.say("it can't be asked to shut down (%v); cut its power", err)
		return m.Kill(ctx)
	}
	waiting, cancel := context.WithTimeout(ctx, shutdownMax)
	defer cancel()
	if err := m.waitStopped(waiting); err != nil && ctx.Err() == nil {
		m.say("it does not end within %v; cut its power", shutdownMax)
	}
	return m.Kill(ctx)
}

func (m *Machine) askShutdown(ctx context.Context) error {
	conn, err := m.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, apiMax)
	defer cancel()
	_, err = capsulev1.NewCapsuleServiceClient(conn).Shutdown(ctx, &capsulev1.ShutdownRequest{})
	return err
}

// Down shuts the machine down and removes all of it, or keeps it for the next
// Up when keep is set.
func (m *Machine) Down(ctx context.Context, keep bool) error {
	if err := m.Shutdown(ctx); err != nil {
		return err
	}
	if keep {
		return nil
	}
	if err := errors.Join(m.removeSockets(), os.RemoveAll(m.Dir)); err != nil {
		return fmt.Errorf("remove machine %q: %w", m.Name, err)
	}
	return nil
}

func (m *Machine) waitStopped(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for m.Running() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}
