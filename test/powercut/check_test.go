//go:build machine

package powercut

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"capsule/internal/blocklog"
	"capsule/test/powercut/plan"
)

// checkLimit is vmexec's for one checking machine.
const checkLimit = "12h"

// checked takes the results of several machines one at a time.
type checked struct {
	mu   sync.Mutex
	told func(plan.Result)
}

func (c *checked) add(r plan.Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told(r)
}

// check tries all cuts on several machines side by side.
func (r *recording) check(p plan.Plan, cuts []blocklog.Cut, machines int, into *checked) error {
	program, vmexec := filepath.Join(r.dir, "check"), filepath.Join(r.dir, "vmexec")
	if err := errors.Join(r.build("check", "./test/powercut/check"), r.build("vmexec", "./test/vmexec")); err != nil {
		return err
	}
	machines = min(machines, len(cuts))
	errs := make(chan error, machines)
	for i, part := range divide(cuts, machines) {
		own := p
		own.Cuts = part
		go func() { errs <- r.checkPart(filepath.Join(r.dir, fmt.Sprint("part", i)), own, vmexec, program, into) }()
	}
	var first error
	for range machines {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// build compiles a program into the folder of this run.
func (r *recording) build(name, pkg string) error {
	cmd := exec.CommandContext(r.ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(r.dir, name), pkg)
	cmd.Dir, cmd.Env = repository, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, text)
	}
	return nil
}

// checkPart checks the cuts of one machine. An emulated kernel panics now and then at
// nothing that a capsule does: what such a machine had before it goes to another one,
// but a cut at which two end is not tried again.
func (r *recording) checkPart(dir string, p plan.Plan, vmexec, program string, into *checked) error {
	for ended := false; ; ended = true {
		var done int
		said, err := r.checkOn(dir, p, vmexec, program, &checked{told: func(c plan.Result) { done++; into.add(c) }})
		if p.Cuts = p.Cuts[done:]; err == nil || !strings.Contains(said, "Kernel panic") || len(p.Cuts) == 0 || ended && done == 0 {
			return err
		}
		r.t.Logf("the kernel of a checking machine panicked at cut %v: %v", p.Cuts[0], err)
	}
}

// checkOn runs one machine, and gives what it said beside the results.
func (r *recording) checkOn(dir string, p plan.Plan, vmexec, program string, into *checked) (string, error) {
	file, err := writePlan(dir, p)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(r.ctx, vmexec, "-build", built(), "-limit", checkLimit, "-disk", "256M", "-memory", "1024",
		"-drive", plan.SerialPlan+"="+file, "-drive", plan.SerialBase+"="+r.machine.BaseDisk(),
		"-drive", plan.SerialLog+"="+r.machine.WriteLog(), "--", program)
	cmd.Dir = repository
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return "", err
	}
	said := follow(out, into)
	if err := cmd.Wait(); err != nil {
		return said, fmt.Errorf("check cuts: %w: %s", err, said)
	}
	if strings.TrimSpace(said) != "" {
		r.t.Logf("a checking machine said: %s", said)
	}
	return said, nil
}

// writePlan makes the plan a disk: whole sectors.
func writePlan(dir string, p plan.Plan) (string, error) {
	data, err := json.Marshal(p)
	if err != nil {
		return "", err
	}
	const sector = 512
	data = append(data, bytes.Repeat([]byte{' '}, sector-len(data)%sector)...)
	file := filepath.Join(dir, "plan.json")
	return file, errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(file, data, 0o600))
}

// follow takes the results out of what a machine prints, and gives the rest.
func follow(out io.Reader, into *checked) string {
	var other strings.Builder
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		_, found, ok := strings.Cut(lines.Text(), plan.ResultMark)
		var result plan.Result
		if ok && json.Unmarshal([]byte(found), &result) == nil {
			into.add(result)
			continue
		}
		fmt.Fprintln(&other, lines.Text())
	}
	return other.String()
}

// plan reads the recording, once nobody writes to it any more, and tells what
// must hold at which of its entries.
func (r *recording) plan() (*blocklog.Log, plan.Plan) {
	r.t.Helper()
	f, err := os.Open(r.machine.WriteLog())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { f.Close() })
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		r.t.Fatal(err)
	}
	l, err := blocklog.Read(f, size)
	if err != nil {
		r.t.Fatal(err)
	}
	p := plan.Plan{LogBytes: size, Disks: []plan.Disk{{Bytes: diskBytes}}, Facts: located(l, r.facts)}
	if r.systems != nil {
		p.Systems, p.UpdatesFrom = r.systems, l.Begun(r.updatesAt)
	}
	for _, d := range r.disks {
		d.From = l.Begun(r.grownAt)
		p.Disks = append(p.Disks, d)
		if err := os.Truncate(r.machine.BaseDisk(), d.Bytes); err != nil {
			r.t.Fatal(err)
		}
	}
	return l, p
}
