package microvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	guestv1 "capsule/api/capsule/guest/v1"
	"capsule/internal/await"
	"capsule/internal/instance"
	"capsule/internal/jail"
	"capsule/internal/logs"
	"capsule/internal/process"
	"capsule/internal/qemu"
	"capsule/internal/workload"
)

const (
	updateEvery = 5 * time.Second        // between two looks at what the guest must know
	askAgain    = 200 * time.Millisecond // after an attempt that failed
	quitMax     = 5 * time.Second        // for QEMU to end when it is told to
	killMax     = 10 * time.Second       // for the kernel to end what was killed
	loggerMax   = 10 * time.Second       // for what was printed to be on the disk
	serialLines = 100                    // in which the last words of a guest are looked for
)

// facts are what the run folder keeps of a running machine, for the next daemon.
type facts struct {
	Logger     identity
	ID         workload.ID
	Began      time.Time // of QEMU
	Started    time.Time // of the payload
	Number     int
	LogDir     string
	ResolvConf string
	Hosts      string
	NetNS      string // "" without a network card
	Volumes    []volumeFacts
	Running    bool // it was told what to run, and the record says so
}

// vm is a QEMU that runs, or did until a moment ago.
type vm struct {
	facts
	driver  *Driver
	record  string
	qemu    *jail.Process
	logger  *proc // nil when it is gone
	agent   *agent
	ice     ice
	growing sync.Mutex
	killed  atomic.Bool   // by us
	ended   chan struct{} // closed when the payload or QEMU has ended
	done    chan struct{} // closed when nothing is left but the record
}

// Files in the run folder of a record. Their paths are bound to 107 bytes, of
// which the record's name may take 76.
const (
	lockFile  = "lock"
	factsFile = "facts"
	qmpFile   = "qmp"
	agentFile = "agent"
)

func (d *Driver) runDir(record string) string { return filepath.Join(d.opts.RunDir, record) }

// file in the run folder of a record.
func (d *Driver) file(record, name string) string { return filepath.Join(d.runDir(record), name) }

// hold makes the vm of a QEMU that was started, by whomever.
func (d *Driver) hold(record string, qemu *jail.Process, f facts) (*vm, error) {
	m := &vm{facts: f, driver: d, record: record, qemu: qemu, ice: newIce(), ended: make(chan struct{}), done: make(chan struct{})}
	m.logger, _ = watchProcess(f.Logger)
	var err error
	if m.agent, err = newAgent(m.dial, d.pace.call); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *vm) close() {
	if m.agent != nil {
		m.agent.close()
	}
	if m.logger != nil {
		m.logger.close()
	}
}

// over tells whether its end was seen.
func (m *vm) over() bool { return closed(m.ended) }

// gone tells whether QEMU has ended.
func (m *vm) gone() bool { return closed(m.qemu.Done()) }

func closed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// watch sees the machine to its end. Nobody else writes how that was.
func (m *vm) watch() {
	ctx := m.driver.life
	defer m.close()
	how, err := m.outcome(ctx)
	if err != nil {
		return // the driver was closed; the machine runs on
	}
	close(m.ended)
	slog.Info("workload ended", "name", m.ID.Name, "generation", m.ID.Generation, "how", how.String(), "note", how.Note)
	if m.write(ctx, how) != nil {
		return
	}
	m.powerOff(ctx)
	select {
	case <-m.qemu.Done():
	case <-ctx.Done(): // the lock is QEMU's while it lives
		return
	}
	m.clear(ctx)
	how.Mark(m.LogDir)
	m.driver.leave(m)
	close(m.done)
	m.driver.hint(m.ID.Name)
}

// outcome waits for the end of the payload, or of QEMU.
func (m *vm) outcome(ctx context.Context) (instance.Ending, error) {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	result := make(chan instance.Ending, 1)
	go m.ask(asking, result)
	go m.update(asking)
	go m.catchUp(asking)
	select {
	case how := <-result:
		return how, nil
	case <-m.qemu.Done():
		select {
		case how := <-result: // just before
			return how, nil
		default:
			return m.lost(ctx), nil
		}
	case <-ctx.Done():
		return instance.Ending{}, ctx.Err()
	}
}

// ask waits for the guest to tell how its payload ended. The stream may break
// while the guest goes on.
func (m *vm) ask(ctx context.Context, result chan<- instance.Ending) {
	for {
		r, err := m.agent.Wait(ctx, &guestv1.WaitRequest{}, grpc.WaitForReady(true))
		if err == nil {
			how := ending(r.GetEnding())
			how.At = time.Now()
			result <- how
			return
		}
		if await.Pause(ctx, askAgain) != nil {
			return
		}
	}
}

// lost is how a machine ended that told nothing, or told it a daemon before this
// one, which died while the machine powered off.
func (m *vm) lost(ctx context.Context) instance.Ending {
	if c, err := m.driver.records.Get(ctx, m.ID); err == nil {
		if how, ok := instance.ParseEnding(c.Labels[instance.LabelEnd]); ok {
			how.Note = c.Labels[instance.LabelNote]
			return how
		}
	}
	how := instance.Ending{Code: process.Killed, At: time.Now()}
	if !m.killed.Load() {
		m.drained(ctx)
		how.Note = "its machine ended" + lastWords(ctx, m.LogDir, m.Began)
	}
	return how
}

// lastWords are the end of what kernel and agent of a guest printed, for a
// sentence, of a machine that began then. A kernel that panicked says why first,
// and then much of itself.
func lastWords(ctx context.Context, logDir string, began time.Time) string {
	var text bytes.Buffer
	err := logs.Follow(ctx, logs.Serial(logDir), logs.Options{Tail: serialLines, Since: began}, func(r logs.Record) error {
		text.Write(r.Data)
		return nil
	})
	var lines []string
	for line := range strings.Lines(text.String()) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if err != nil || len(lines) == 0 {
		return "; it printed nothing on its serial line"
	}
	panicked := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, "Kernel panic") })
	if panicked >= 0 {
		return "; its serial line says: " + clean(strings.Join(lines[panicked:], " | "))
	}
	words := strings.Join(lines, " | ")
	return "; its serial line ends: " + clean(words[max(0, len(words)-textMax):])
}

// write keeps the end in the record, also over a restart of containerd.
func (m *vm) write(ctx context.Context, how instance.Ending) error {
	for told := false; ; {
		err := m.driver.records.Ended(ctx, m.record, how)
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		if ctx.Err() == nil && !told && !errdefs.IsUnavailable(err) {
			slog.Error("keep how a workload ended; it is tried again", "name", m.ID.Name, "error", err)
			told = true
		}
		if err := await.Pause(ctx, askAgain); err != nil {
			return err
		}
	}
}

// powerOff ends the guest in good order, or else by force.
func (m *vm) powerOff(ctx context.Context) {
	if m.gone() {
		return
	}
	asking, cancel := context.WithTimeout(ctx, m.driver.pace.powerOff)
	defer cancel()
	_, err := m.agent.PowerOff(asking, &guestv1.PowerOffRequest{})
	ended := err == nil && within(ctx, m.qemu.Done(), m.driver.pace.exit) || m.gone()
	if !ended && ctx.Err() == nil {
		m.force(ctx)
	}
}

// force ends QEMU whatever its guest does.
func (m *vm) force(ctx context.Context) {
	if m.quit(ctx) && within(ctx, m.qemu.Done(), quitMax) {
		return
	}
	m.kill()
	if !within(ctx, m.qemu.Done(), killMax) {
		slog.Error("a killed machine does not end, a disk may not answer", "workload", m.ID.Name, "pid", m.qemu.PID)
	}
}

// quit tells QEMU to end.
func (m *vm) quit(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, quitMax)
	defer cancel()
	m.killed.Store(true)
	monitor, err := qemu.Dial(ctx, m.driver.file(m.record, qmpFile))
	if err != nil {
		return false
	}
	defer monitor.Close()
	return monitor.Do(ctx, "quit", nil, nil) == nil
}

func (m *vm) kill() {
	m.killed.Store(true)
	if err := m.qemu.Kill(); err != nil {
		slog.Error("kill a machine", "workload", m.ID.Name, "error", err)
	}
}

// drained waits until all that was printed is in the log.
func (m *vm) drained(ctx context.Context) {
	if m.logger != nil {
		drain(ctx, m.logger)
	}
}

// drain waits for a logger, which ends when QEMU has.
func drain(ctx context.Context, logger *proc) {
	if !logger.within(ctx, loggerMax) {
		_ = logger.kill()
	}
}

// clear removes what a machine that has ended left on ours.
func (m *vm) clear(ctx context.Context) {
	m.drained(ctx)
	m.driver.clear(m.record, m.facts)
}

// clear removes what a machine that is gone left of itself.
func (d *Driver) clear(record string, f facts) {
	var card error
	if f.NetNS != "" {
		card = closeCard(f.NetNS)
	}
	if err := errors.Join(card, d.removeCgroup(instance.WorkloadName(record)), os.RemoveAll(d.runDir(record))); err != nil {
		slog.Warn("clear away an ended machine", "record", record, "error", err)
	}
}

// update tells the guest what changes around it: the time goes on, and other
// workloads get names.
func (m *vm) update(ctx context.Context) {
	var told [2][]byte
	for {
		if await.Pause(ctx, updateEvery) != nil {
			return
		}
		r := &guestv1.UpdateRequest{}
		files := [2][]byte{read(m.ResolvConf), read(m.Hosts)}
		if told[0] == nil || !bytes.Equal(files[0], told[0]) {
			r.ResolvConf = files[0]
		}
		if told[1] == nil || !bytes.Equal(files[1], told[1]) {
			r.Hosts = files[1]
		}
		if m.tell(ctx, r) == nil {
			told = files
		}
	}
}

func (m *vm) tell(ctx context.Context, r *guestv1.UpdateRequest) error {
	limited, cancel := context.WithTimeout(ctx, m.driver.pace.call)
	defer cancel()
	r.Time = timestamppb.Now()
	_, err := m.agent.Update(limited, r)
	return err
}

// hostFileMax bounds files that name other machines.
const hostFileMax = 256 << 10

// read gives a file that names other machines, nil when there is none.
func read(path string) []byte {
	if path == "" {
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) > hostFileMax {
		return nil
	}
	return b
}

// keep writes the facts.
func (d *Driver) keep(record string, f facts) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	path := d.file(record, factsFile)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// facts of a record's running machine.
func (d *Driver) facts(record string) (facts, error) {
	var f facts
	b, err := os.ReadFile(d.file(record, factsFile))
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		return f, fmt.Errorf("read what is known of a running machine: %w", err)
	}
	return f, nil
}
