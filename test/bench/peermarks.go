package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// mark is a line that a peer says of itself (peer/run.sh).
type mark struct {
	at     time.Duration // since the kernel's start
	kind   string
	fields map[string]string
}

// record is all that a start of a peer told.
type record struct {
	marks   []mark
	console string
}

const (
	consoleMax  = 16 * mib
	consoleTail = 4 * 1024
)

var (
	markLine    = regexp.MustCompile(`\[ *([0-9]+\.[0-9]+)\] bench: ([a-z]+)((?: [a-z]+=\S*)*) *$`)
	restartLine = regexp.MustCompile(`\[ *([0-9]+\.[0-9]+)\] reboot: Restarting system`)
)

// parseMark reads a line of a console; ok is false for all other lines.
func parseMark(line string) (m mark, ok bool) {
	found := markLine.FindStringSubmatch(line)
	if found == nil {
		return m, false
	}
	at, err := time.ParseDuration(found[1] + "s")
	if err != nil {
		return m, false
	}
	m = mark{at: at, kind: found[2], fields: map[string]string{}}
	for _, f := range strings.Fields(found[3]) {
		key, value, _ := strings.Cut(f, "=")
		m.fields[key] = value
	}
	return m, true
}

// run starts a peer and waits until it ends; each mark is shown to watch as it comes,
// which says when the power is to be cut.
func (m peerMachine) run(ctx context.Context, cut func(mark) bool) (record, error) {
	ctx, cancel := context.WithTimeout(ctx, peerMax)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", m.arguments()...)
	var complaints bytes.Buffer
	cmd.Stderr, cmd.WaitDelay = &complaints, time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return record{}, err
	}
	if err := cmd.Start(); err != nil {
		return record{}, fmt.Errorf("start %s: %w; run make deps", m.title, err)
	}
	r, wasCut, err := hearPeer(out, func(found mark) bool {
		if cut == nil || !cut(found) {
			return false
		}
		cancel() // QEMU gets SIGKILL
		return true
	})
	if err != nil {
		cancel() // or QEMU waits for ever for who reads
	}
	ended := cmd.Wait()
	switch {
	case err != nil:
	case cut != nil && !wasCut:
		err = errors.Join(ctx.Err(), errors.New("it ends before its power is cut"))
	case cut == nil && ended != nil:
		err = fmt.Errorf("%w: %s", cmp.Or(ctx.Err(), ended), complaints.String())
	}
	if err != nil {
		return r, fmt.Errorf("%s, %q: %w; %s", m.title, m.scenario, err, r.tail())
	}
	return r, nil
}

// hearPeer reads a console to its end, or to where the power is cut. What the peer says
// of a step that fails is an error.
func hearPeer(console io.Reader, cut func(mark) bool) (r record, wasCut bool, err error) {
	lines := bufio.NewScanner(console)
	lines.Buffer(nil, mib)
	var text strings.Builder
	defer func() { r.console = text.String() }()
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		text.WriteString(line + "\n")
		if text.Len() > consoleMax {
			return r, wasCut, fmt.Errorf("its console shows more than %d MiB", consoleMax/mib)
		}
		found, ok := parseMark(line)
		if !ok {
			continue
		}
		r.marks = append(r.marks, found)
		if found.kind == "failed" {
			err = fmt.Errorf("line %s fails: %s", found.fields["line"], found.fields["why"])
		}
		if cut(found) {
			return r, true, err
		}
	}
	return r, wasCut, errors.Join(err, lines.Err())
}

func (r record) tail() string {
	return "the end of its console:\n" + r.console[max(0, len(r.console)-consoleTail):]
}

// first is the first mark of a kind, of which a field has a value if one is named.
func (r record) first(kind string, field ...string) (mark, error) {
	for _, m := range r.marks {
		if m.kind == kind && (len(field) == 0 || m.fields[field[0]] == field[1]) {
			return m, nil
		}
	}
	return mark{}, fmt.Errorf("it tells of no %q%q; %s", kind, field, r.tail())
}

// span is how long a command took.
func (r record) span(what string) (time.Duration, error) {
	begin, err1 := r.first("begin", "what", what)
	end, err2 := r.first("end", "what", what)
	return end.at - begin.at, errors.Join(err1, err2)
}

// number of a field.
func (m mark) number(field string) (float64, error) {
	n, err := strconv.ParseFloat(m.fields[field], 64)
	if err != nil {
		return 0, fmt.Errorf("%s tells no %s: %q", m.kind, field, m.fields[field])
	}
	return n, nil
}

// used is the used memory while a number of containers runs, in MiB.
func (r record) used(containers string) (float64, error) {
	m, err := r.first("used", "what", containers)
	if err != nil {
		return 0, err
	}
	kib, err := m.number("kib")
	return kib / 1024, err
}

// able is since the kernel's start: when process 1 runs, and when the engine is able
// to run a container. systemd tells microseconds.
func (r record) able() (init, able time.Duration, err error) {
	m, err := r.first("able")
	if err != nil {
		return 0, 0, err
	}
	from, err1 := m.number("init")
	at, err2 := m.number("at")
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, err
	}
	if from == 0 || at == 0 {
		return 0, 0, fmt.Errorf("its engine never was able to run a container: %v", m.fields)
	}
	return time.Duration(from) * time.Microsecond, time.Duration(at) * time.Microsecond, nil
}

// container is how one is, by the stamps of what runs it.
type container struct {
	created, started, finished time.Time
	running                    bool
}

// runsSince tells that it runs, started after a time: a capsule that has just started
// still shows what was.
func (c container) runsSince(t time.Time) bool { return c.running && c.started.After(t) }

// parseContainer reads a mark of the kind "container"; one that the engine does not know
// is zero.
func parseContainer(m mark) (c container, err error) {
	if m.fields["absent"] != "" {
		return c, nil
	}
	for field, into := range map[string]*time.Time{"created": &c.created, "started": &c.started, "finished": &c.finished} {
		if err := json.Unmarshal([]byte(m.fields[field]), into); err != nil {
			return c, fmt.Errorf("container %q, %s: %w", m.fields["name"], field, err)
		}
	}
	c.running = m.fields["running"] == "true"
	return c, nil
}

// containers gives what was told of a container, each time it was.
func (r record) containers(name string) (all []container, err error) {
	for _, m := range r.marks {
		if m.kind != "container" || m.fields["name"] != name {
			continue
		}
		c, err := parseContainer(m)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// sinceKernel is a time of the wall clock as time since the kernel's start.
func (r record) sinceKernel(t time.Time) (time.Duration, error) {
	m, err := r.first("clock")
	if err != nil {
		return 0, err
	}
	now, err1 := m.number("now")
	up, err2 := m.number("up")
	if err := errors.Join(err1, err2); err != nil {
		return 0, err
	}
	seconds := float64(t.UnixMicro())/1e6 - now + up
	return time.Duration(seconds * float64(time.Second)), nil
}
