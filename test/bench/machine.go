package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"capsule/internal/contexts"
	"capsule/internal/lab"
)

const (
	mib = 1 << 20

	readyMax  = 15 * time.Minute // of an emulated boot that counts instructions
	lookEvery = 200 * time.Millisecond
	discarded = time.Minute
)

func (b *bench) options(o lab.Options) lab.Options {
	o.Image = filepath.Join(b.repository, "build/capsule.img")
	o.ReadyMax = readyMax
	return o
}

// up starts a machine and waits until its containerd answers too. The machine is
// there to be discarded also when that fails.
func (b *bench) up(ctx context.Context, o lab.Options) (*lab.Machine, error) {
	m, err := lab.Up(ctx, b.options(o))
	if err != nil {
		return m, err
	}
	_, err = waitConsole(ctx, m, 0, works)
	return m, err
}

// discard ends a machine; its files go with the run's folder.
func (b *bench) discard(ctx context.Context, m *lab.Machine) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discarded)
	defer cancel()
	if err := m.Kill(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

// ctl runs capsulectl against a machine and gives what it prints.
func (b *bench) ctl(m *lab.Machine, args ...string) (string, error) {
	out, _, err := b.ctlNotes(m, args...)
	return out, err
}

// ctlNotes gives also what capsulectl says beside that.
func (b *bench) ctlNotes(m *lab.Machine, args ...string) (out, notes string, err error) {
	c, err := m.Context()
	if err != nil {
		return "", "", err
	}
	if err := save(c); err != nil {
		return "", "", err
	}
	var complaints strings.Builder
	cmd := exec.Command(filepath.Join(b.repository, "bin/capsulectl"), append([]string{"--capsule", m.Name}, args...)...)
	cmd.Stderr = &complaints
	text, err := cmd.Output()
	if err != nil {
		return "", "", fmt.Errorf("capsulectl %s: %w: %s", strings.Join(args, " "), err, complaints.String())
	}
	return string(text), complaints.String(), nil
}

// save keeps a machine's context where capsulectl looks for it.
func save(c contexts.Context) error {
	store, err := contexts.Open("")
	if err != nil {
		return err
	}
	return store.Put(c)
}

func (b *bench) push(m *lab.Machine) error {
	_, err := b.ctl(m, "image", "push", filepath.Join(b.repository, "build/example/web.tar"))
	return err
}

// apply makes a container and waits until it runs; the time is between the
// capsule's own stamps of both, the second from before runc's start.
func (b *bench) apply(m *lab.Machine, name string) (time.Duration, error) {
	path := filepath.Join(b.dir, name+".yaml")
	if err := os.WriteFile(path, []byte("kind: Container\nname: "+name+"\nimage: web:1\n"), 0o600); err != nil {
		return 0, err
	}
	if _, err := b.ctl(m, "apply", "--wait", "--timeout", "10m", "-f", path); err != nil {
		return 0, err
	}
	out, err := b.ctl(m, "workload", "get", name, "-o", "json")
	if err != nil {
		return 0, err
	}
	var object struct {
		Meta struct {
			CreatedAt time.Time `json:"createdAt"`
		} `json:"meta"`
		Workload struct {
			Status struct {
				StartedAt time.Time `json:"startedAt"`
			} `json:"status"`
		} `json:"workload"`
	}
	if err := json.Unmarshal([]byte(out), &object); err != nil {
		return 0, fmt.Errorf("workload %q: %w", name, err)
	}
	if object.Workload.Status.StartedAt.IsZero() {
		return 0, fmt.Errorf("workload %q has no start time: %s", name, out)
	}
	return object.Workload.Status.StartedAt.Sub(object.Meta.CreatedAt), nil
}
