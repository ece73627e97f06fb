package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/await"
)

const scaleMethod = `The image's root with its containerd and runc and this tree's capsuled, as processes of this computer in
namespaces of their own: by its kernel, so that the seconds are real and its load counts. No uplink, no pool of volumes.
100 containers of ` + "`examples/web`" + ` run, 100 more were started and then stopped by an operator. A full pass looks at all
of them and finds nothing to do; capsuled tells its time as a metric. Idle is over three passes, without a client. Reads
come at fixed times over eight connections, whether those before were answered or not, and count from when they were
due: nine of ten get one workload, one lists all. Meanwhile a running container is changed, and the next one when that
runs: instances are made, started and ended all the time. Who reads shares the processors. Memory is what the kernel
holds for the process (VmRSS), its program's pages included.`

const (
	scaleMax     = 30 * time.Minute
	scaleRunning = 100
	scaleStopped = 100
	scaleMemory  = 64 << 20 // bytes, of each

	settleTime  = 45 * time.Second // a pass at least
	idleTime    = 90 * time.Second
	loadTime    = 30 * time.Second
	readsEvery  = time.Second / 1000
	listsOf     = 10 // every how many reads lists all
	connections = 8
	phaseMax    = 10 * time.Minute // for all workloads to come into a phase
	passMetric  = "capsule_full_pass_seconds"
	pushBytes   = 256 << 10
)

func (b *bench) scale(ctx context.Context) error {
	h, err := b.newHost(ctx)
	if err != nil {
		return err
	}
	return h.run(ctx)
}

// fleet is a host's workloads, and how its API is asked.
type fleet struct {
	conns  []*grpc.ClientConn
	daemon process
	http   *http.Client
}

// measure is done by the host's process 1.
func (h *host) measure(ctx context.Context, daemon *os.Process) error {
	f := &fleet{daemon: process(daemon.Pid)}
	for range connections {
		conn, err := h.Context.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		f.conns = append(f.conns, conn)
	}
	config, err := h.Context.TLS()
	if err != nil {
		return err
	}
	config.NextProtos = []string{"http/1.1"}
	f.http = &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	empty, err := f.daemon.memory()
	if err != nil {
		return err
	}
	if err := errors.Join(f.push(ctx), f.populate(ctx)); err != nil {
		return err
	}
	head("What", "Measured", "Goal")
	row("memory of capsuled, no workload", fmt.Sprintf("%.1f MiB", empty), "")
	if err := f.idle(ctx); err != nil {
		return err
	}
	return f.load(ctx)
}

// idle tells of a pass, and of what capsuled takes while nothing happens.
func (f *fleet) idle(ctx context.Context) error {
	if err := await.Pause(ctx, settleTime); err != nil {
		return err
	}
	pass, err := f.metric(ctx, passMetric)
	if err != nil {
		return err
	}
	before, err := f.daemon.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := await.Pause(ctx, idleTime); err != nil {
		return err
	}
	after, err1 := f.daemon.cpu()
	took := time.Since(began)
	memory, err2 := f.daemon.memory()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	workloads := scaleRunning + scaleStopped
	row("a full pass", fmt.Sprintf("%.3f s", pass), "≤ 1 s")
	row("capsuled while idle, of a processor", fmt.Sprintf("%.2f %%", 100*(after-before).Seconds()/took.Seconds()), "≤ 1 %")
	row(fmt.Sprintf("memory of capsuled, %d workloads", workloads), fmt.Sprintf("%.1f MiB", memory),
		fmt.Sprintf("≤ %.1f MiB", 60+float64(workloads)*50/1024))
	return nil
}

// push sends the image.
func (f *fleet) push(ctx context.Context) error {
	archive, err := os.ReadFile(filepath.Join(hostShare, archiveFile))
	if err != nil {
		return err
	}
	stream, err := capsulev1.NewImageServiceClient(f.conns[0]).Push(ctx)
	if err != nil {
		return err
	}
	messages := []*capsulev1.PushRequest{{Part: &capsulev1.PushRequest_Options{Options: &capsulev1.PushOptions{}}}}
	for at := 0; at < len(archive); at += pushBytes {
		messages = append(messages, &capsulev1.PushRequest{Part: &capsulev1.PushRequest_Data{Data: archive[at:min(at+pushBytes, len(archive))]}})
	}
	for _, m := range messages {
		if err := stream.Send(m); err != nil {
			break // why, comes with the answer
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("push the image: %w", err)
		}
	}
}

// populate starts all workloads, then stops those that are to be stopped.
func (f *fleet) populate(ctx context.Context) error {
	var all []*capsulev1.Object
	for i := range scaleRunning + scaleStopped {
		all = append(all, declared(i, 0))
	}
	if _, err := f.objects(0).Apply(ctx, &capsulev1.ApplyRequest{Objects: all}); err != nil {
		return err
	}
	if err := f.await(ctx, capsulev1.Phase_PHASE_RUNNING, 0, scaleRunning+scaleStopped); err != nil {
		return err
	}
	workloads := capsulev1.NewWorkloadServiceClient(f.conns[0])
	for i := scaleRunning; i < scaleRunning+scaleStopped; i++ {
		if _, err := workloads.Stop(ctx, &capsulev1.StopRequest{Name: nameOf(i)}); err != nil {
			return err
		}
	}
	return f.await(ctx, capsulev1.Phase_PHASE_STOPPED, scaleRunning, scaleRunning+scaleStopped)
}

func nameOf(i int) string { return fmt.Sprintf("bench-%03d", i) }

// declared is a workload after some changes.
func declared(i, changes int) *capsulev1.Object {
	return &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: "Container", Name: nameOf(i)},
		Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Spec: &capsulev1.WorkloadSpec{
			Image: "web:1", Resources: &capsulev1.Resources{Memory: scaleMemory}, Env: map[string]string{"GREETING": fmt.Sprint("change ", changes)},
		}}},
	}
}

func (f *fleet) objects(n int) capsulev1.ObjectServiceClient {
	return capsulev1.NewObjectServiceClient(f.conns[n%len(f.conns)])
}

// await waits until the workloads of some numbers are in a phase as declared.
func (f *fleet) await(ctx context.Context, phase capsulev1.Phase, from, to int) error {
	limited, cancel := context.WithTimeout(ctx, phaseMax)
	defer cancel()
	watch, err := f.objects(from).Watch(limited, &capsulev1.WatchRequest{Name: only(from, to)})
	if err != nil {
		return err
	}
	right, last := map[string]bool{}, ""
	for len(right) < to-from {
		c, err := watch.Recv()
		if err != nil {
			return fmt.Errorf("%d of %d workloads are %v, the last one that is not: %s: %w", len(right), to-from, phase, last, err)
		}
		name, st := c.GetObject().GetMeta().GetName(), c.GetObject().GetWorkload().GetStatus()
		switch {
		case name < nameOf(from) || name >= nameOf(to):
		case st.GetPhase() == phase && st.GetGeneration() == c.GetObject().GetMeta().GetGeneration():
			right[name] = true
		default:
			delete(right, name)
			last = name + ": " + st.GetMessage()
		}
	}
	return nil
}

// only is the name of the one workload from a number to another, "" when there are
// more.
func only(from, to int) string {
	if to-from == 1 {
		return nameOf(from)
	}
	return ""
}

// metric reads one of the capsule's.
func (f *fleet) metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+apiAddress+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if value, ok := strings.CutPrefix(string(line), name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("the capsule has no metric %s", name)
}

// process is one that is measured.
type process int

// clockTick is the unit of times in /proc (USER_HZ), which is the same everywhere.
const clockTick = time.Second / 100

// cpu is the time of processors that it has taken.
func (p process) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("process %d: %q", p, text)
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * clockTick, errors.Join(err1, err2)
}

// memory is what it holds, in MiB.
func (p process) memory() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", p)
}
