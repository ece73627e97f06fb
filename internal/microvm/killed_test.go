package microvm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc"

	"capsule/internal/imagetest"
	"capsule/internal/jail"
	"capsule/internal/workload"
)

// victimVariable has the test binary be a daemon that is killed.
const victimVariable = "CAPSULE_TEST_VICTIM"

// victimOrder is what it is told.
type victimOrder struct {
	Containerd string
	Options    Options
	Instance   workload.Instance
}

// victim prepares and starts an instance, and says what it has done.
func victim(text string) {
	var o victimOrder
	err := json.Unmarshal([]byte(text), &o)
	if err != nil {
		panic(err)
	}
	client, err := containerd.New(o.Containerd, containerd.WithDefaultNamespace(imagetest.Namespace))
	if err != nil {
		panic(err)
	}
	d := New(client, o.Options)
	step := func(name string, err error) {
		if err != nil {
			name = err.Error()
		}
		fmt.Println(name)
	}
	step("prepared", d.Prepare(context.Background(), o.Instance))
	step("started", d.Start(context.Background(), o.Instance))
	select {}
}

// A daemon that is killed at any moment of a start leaves an instance that the
// next one starts, or finds running: once.
func TestDaemonKilled(t *testing.T) {
	w := newWorld(t)
	for i, delay := range []time.Duration{0, 50, 120, 200, 400, 700, 1000, -1} {
		t.Run(fmt.Sprint(delay), func(t *testing.T) {
			in := w.instance(t, fmt.Sprintf("victim%d", i), "trap", "15", "6")
			t.Cleanup(func() {
				if err := w.driver.Remove(context.WithoutCancel(t.Context()), in.ID); err != nil {
					t.Error(err)
				}
			})
			w.killDuring(t, in, delay*time.Millisecond)
			d := w.fresh()
			if err := d.Prepare(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			before, err := jail.Find(d.file(recordID(in), lockFile))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.List(t.Context()); err != nil {
				t.Fatal(err)
			}
			first := in.LogDir
			in.LogDir += "-again" // of another machine, which has to get ready too
			if err := d.Start(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			w.observe(t, in.ID, workload.Running)
			after, err := jail.Find(d.file(recordID(in), lockFile))
			if err != nil || after == nil {
				t.Fatalf("nothing runs: %v", err)
			}
			if before != nil && before.PID == after.PID {
				in.LogDir = first
			}
			printed(t, in.LogDir, "ready")
			if delay < 0 && (before == nil || before.PID != after.PID) {
				t.Errorf("a machine that ran was replaced: %v, %d", before, after.PID)
			}
			if before != nil && before.PID != after.PID {
				<-before.Done() // else the test hangs: two of one instance
			}
			if err := d.Stop(t.Context(), in.ID, sigterm, patience); err != nil {
				t.Fatal(err)
			}
			if o := w.observe(t, in.ID, workload.Ended); o.ExitCode != 6 {
				t.Errorf("%+v", o)
			}
		})
	}
}

// killDuring starts an instance by another process and kills that after a while,
// or when it has done it.
func (w *world) killDuring(t *testing.T, in workload.Instance, delay time.Duration) {
	t.Helper()
	order, err := json.Marshal(victimOrder{Containerd: w.socket(t), Options: w.opts, Instance: in})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimVariable+"="+string(order))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	steps := bufio.NewScanner(out)
	for steps.Scan() {
		if step := steps.Text(); delay < 0 && step == "started" || delay >= 0 && step == "prepared" {
			break
		} else if step != "prepared" {
			t.Errorf("the other daemon: %s", step)
			break
		}
	}
	<-time.After(max(delay, 0)) // the moment that the test is about
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// socket of containerd.
func (w *world) socket(t *testing.T) string {
	t.Helper()
	conn, ok := w.client.Conn().(*grpc.ClientConn)
	if !ok {
		t.Fatalf("containerd's client is %T", w.client.Conn())
	}
	_, path, _ := strings.Cut(conn.Target(), "://")
	return strings.TrimPrefix(path, "passthrough:///")
}
