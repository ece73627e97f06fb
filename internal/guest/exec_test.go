package guest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestv1 "capsule/api/capsule/guest/v1"
	capsulev1 "capsule/api/capsule/v1"
)

// A call is one command in a guest.
type call struct {
	t      *testing.T
	stream guestv1.GuestService_ExecClient
	cancel context.CancelFunc
	out    bytes.Buffer
	errOut bytes.Buffer
	exit   *capsulev1.ExecExit
}

func begin(t *testing.T, c guestv1.GuestServiceClient, start *capsulev1.ExecStart) *call {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	stream, err := c.Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	x := &call{t: t, stream: stream, cancel: cancel}
	x.send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Start{Start: start}})
	return x
}

func (x *call) send(r *capsulev1.ExecRequest) {
	x.t.Helper()
	if err := x.stream.Send(r); err != nil {
		x.t.Error(err)
	}
}

// input sends all of it, or what is taken until the call has ended: how it did is told
// by finish.
func (x *call) input(data []byte) {
	for len(data) > 0 {
		n := min(len(data), 32<<10)
		if x.stream.Send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Stdin{Stdin: data[:n]}}) != nil {
			return
		}
		data = data[n:]
	}
	_ = x.stream.Send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_StdinClosed{StdinClosed: true}})
}

func (x *call) signal(n unix.Signal) {
	x.send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Signal{Signal: int32(n)}})
}

// until reads answers until the output has the text; all of them without one.
func (x *call) until(text string) error {
	for text == "" || !strings.Contains(x.out.String(), text) {
		r, err := x.stream.Recv()
		if err != nil {
			if err == io.EOF { //nolint:errorlint // gRPC gives it bare
				return nil
			}
			return err
		}
		x.out.Write(r.GetStdout())
		x.errOut.Write(r.GetStderr())
		if r.GetExit() != nil {
			x.exit = r.GetExit()
		}
	}
	return nil
}

// finish reads to the end.
func (x *call) finish() (code int32, out, errOut string) {
	x.t.Helper()
	if err := x.until(""); err != nil {
		x.t.Fatalf("exec: %v, after %q and %q", err, x.out.String(), x.errOut.String())
	}
	return x.exit.GetCode(), x.out.String(), x.errOut.String()
}

func payloadVerb(args ...string) *capsulev1.ExecStart {
	return &capsulev1.ExecStart{Command: append([]string{"/payload"}, args...)}
}

// commands is what every guest does, on this machine and in a real one. Its
// payload runs as the user app with A=1 in its environment.
func commands(t *testing.T, c guestv1.GuestServiceClient) {
	t.Run("codes", func(t *testing.T) { commandCodes(t, c) })
	t.Run("surroundings", func(t *testing.T) { commandSurroundings(t, c) })
	t.Run("input", func(t *testing.T) { commandInput(t, c) })
	t.Run("terminal", func(t *testing.T) { commandTerminal(t, c) })
	t.Run("signals", func(t *testing.T) { commandSignals(t, c) })
	t.Run("the caller leaves", func(t *testing.T) { commandLeft(t, c) })
	t.Run("a slow caller", func(t *testing.T) { commandSlow(t, c) })
	t.Run("many at once", func(t *testing.T) { commandMany(t, c) })
	t.Run("nothing is left", func(t *testing.T) {
		if pids := processes(t, c); len(pids) > 2 {
			t.Errorf("processes: %v", pids)
		}
	})
	t.Run("a child keeps the output", func(t *testing.T) { commandChild(t, c) })
}

// processes in the payload's namespace, the listing one too.
func processes(t *testing.T, c guestv1.GuestServiceClient) (pids []string) {
	_, out, _ := begin(t, c, payloadVerb("ls", "/proc")).finish()
	for _, name := range strings.Fields(out) {
		if _, err := strconv.Atoi(name); err == nil {
			pids = append(pids, name)
		}
	}
	return pids
}

func commandCodes(t *testing.T, c guestv1.GuestServiceClient) {
	for _, tc := range []struct {
		start  *capsulev1.ExecStart
		code   int32
		stderr string
	}{
		{&capsulev1.ExecStart{Command: []string{"/etc"}}, 126, `capsule: "/etc" is a folder`},
		{&capsulev1.ExecStart{Command: []string{"/etc/passwd"}}, 126, "not executable"},
		{&capsulev1.ExecStart{Command: []string{"nosuch"}}, 127, `"nosuch"`},
		{&capsulev1.ExecStart{Command: []string{"/payload", "true"}, WorkingDir: "/none"}, 126, "/none"},
		{payloadVerb("exit", "3"), 3, ""},
		{payloadVerb("kill", "9"), 137, ""},
		{payloadVerb("kill", "15"), 143, ""},
		{payloadVerb("true"), 0, ""},
		{payloadVerb("printerr", "x"), 0, "x\n"},
	} {
		x := begin(t, c, tc.start)
		code, _, errOut := x.finish()
		if code != tc.code || !strings.Contains(errOut, tc.stderr) || tc.stderr == "" && errOut != "" || x.exit.GetMessage() != "" {
			t.Errorf("%q: %v, stderr %q; want %d, %q", tc.start.GetCommand(), x.exit, errOut, tc.code, tc.stderr)
		}
	}
	for _, start := range []*capsulev1.ExecStart{{}, {Command: []string{"/payload", "true"}, User: "ghost"}} {
		x := begin(t, c, start)
		if err := x.until(""); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", start, err)
		}
	}
}

func commandSurroundings(t *testing.T, c guestv1.GuestServiceClient) {
	verbs := []string{"id", "then", "env", "A", "then", "cwd", "then", "hostname", "then", "cat", "/proc/self/cgroup"}
	_, out, _ := begin(t, c, payloadVerb(verbs...)).finish()
	if want := "uid=1000 gid=1000 groups=[2000]\n1\n/\nweb\n"; !strings.HasPrefix(out, want) || !strings.Contains(out, "0::/\n") {
		t.Errorf("got %q, want %q", out, want)
	}
	start := payloadVerb("id", "then", "env", "A", "then", "env", "B", "then", "cwd", "then", "env", "HOME", "then", "status", "NoNewPrivs", "NSpid")
	start.User, start.WorkingDir, start.Env = "root", "/root", []string{"A=2=", "B=3"}
	_, out, _ = begin(t, c, start).finish()
	if !strings.HasPrefix(out, "uid=0 gid=0 groups=[]\n2=\n3\n/root\n/root\n") || !strings.HasSuffix(out, "NoNewPrivs:\t1\n") || strings.Contains(out, "NSpid:\t1\n") {
		t.Errorf("got %q", out)
	}
	// The same namespaces as the payload's.
	_, mine, _ := begin(t, c, payloadVerb("stat", "/proc/self/ns/mnt", "/proc/self/ns/pid", "/proc/self/ns/uts", "/proc/self/ns/ipc", "/proc/self/ns/cgroup")).finish()
	_, its, _ := begin(t, c, payloadVerb("stat", "/proc/1/ns/mnt", "/proc/1/ns/pid", "/proc/1/ns/uts", "/proc/1/ns/ipc", "/proc/1/ns/cgroup")).finish()
	if mine != its || !strings.Contains(its, "mnt:[") {
		t.Errorf("namespaces %q, the payload's %q", mine, its)
	}
}

func commandInput(t *testing.T, c guestv1.GuestServiceClient) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	for _, in := range [][]byte{nil, []byte("\x00\n\r\xff"), big} {
		start := payloadVerb("cat")
		start.Stdin = true
		x := begin(t, c, start)
		go x.input(in)
		if code, out, _ := x.finish(); code != 0 || out != string(in) {
			t.Errorf("code %d, %d bytes of %d", code, len(out), len(in))
		}
	}
	// Without input, it reads the end at once; one that reads none is no matter.
	if code, out, _ := begin(t, c, payloadVerb("cat")).finish(); code != 0 || out != "" {
		t.Errorf("code %d, %q", code, out)
	}
	start := payloadVerb("true")
	start.Stdin = true
	x := begin(t, c, start)
	go x.input(big)
	if code, _, _ := x.finish(); code != 0 {
		t.Errorf("code %d", code)
	}
}

func commandTerminal(t *testing.T, c guestv1.GuestServiceClient) {
	start := payloadVerb("stty", "watch")
	start.Tty, start.Stdin, start.Size = true, true, &capsulev1.TerminalSize{Rows: 50, Columns: 132}
	x := begin(t, c, start)
	if err := x.until("50 132\r\n"); err != nil {
		t.Fatal(err)
	}
	x.send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Resize{Resize: &capsulev1.TerminalSize{Rows: 60, Columns: 200}}})
	if err := x.until("60 200\r\n"); err != nil {
		t.Fatal(err)
	}
	x.send(&capsulev1.ExecRequest{Input: &capsulev1.ExecRequest_Stdin{Stdin: []byte{3}}}) // Ctrl-C
	if code, out, _ := x.finish(); code != 130 {
		t.Errorf("code %d, %q", code, out)
	}
	start = payloadVerb("env", "TERM", "then", "stat", "/proc/self/fd/0", "then", "write", "/dev/tty", "mine")
	start.Tty = true
	_, out, _ := begin(t, c, start).finish()
	if !strings.HasPrefix(out, "xterm\r\n") || !strings.Contains(out, "-> /dev/pts/") || !strings.Contains(out, "mine\r\n") {
		t.Errorf("got %q", out)
	}
	if code, out, errOut := begin(t, c, &capsulev1.ExecStart{Command: []string{"nosuch"}, Tty: true}).finish(); code != 127 || !strings.HasSuffix(out, "\r\n") || errOut != "" {
		t.Errorf("code %d, %q, %q", code, out, errOut)
	}
}

func commandSignals(t *testing.T, c guestv1.GuestServiceClient) {
	x := begin(t, c, payloadVerb("trap", "10", "6"))
	if err := x.until("ready"); err != nil {
		t.Fatal(err)
	}
	x.signal(unix.SIGUSR1)
	if code, out, _ := x.finish(); code != 6 || out != "ready\ngot 10\n" {
		t.Errorf("code %d, %q", code, out)
	}
	// As any program, it dies of one that it knows nothing of.
	x = begin(t, c, payloadVerb("print", "ready", "then", "sleep"))
	if err := x.until("ready"); err != nil {
		t.Fatal(err)
	}
	x.signal(unix.SIGHUP)
	if code, _, _ := x.finish(); code != 129 {
		t.Errorf("code %d", code)
	}
	x = begin(t, c, payloadVerb("sleep"))
	x.signal(1000)
	if err := x.until(""); status.Code(err) != codes.InvalidArgument {
		t.Errorf("signal 1000: %v", err)
	}
}

func commandChild(t *testing.T, c guestv1.GuestServiceClient) {
	code, out, _ := begin(t, c, payloadVerb("spawn", "sleep", "1h")).finish() // beyond all patience
	if code != 0 || !strings.HasPrefix(out, "spawned") {
		t.Fatalf("code %d, %q", code, out)
	}
	begin(t, c, payloadVerb("kill", "9", strings.Fields(out)[1])).finish()
}

func commandLeft(t *testing.T, c guestv1.GuestServiceClient) {
	x := begin(t, c, payloadVerb("trap", "0"))
	if err := x.until("ready"); err != nil {
		t.Fatal(err)
	}
	x.cancel()
	if err := x.until(""); status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
	for deadline := time.Now().Add(patience); len(processes(t, c)) > 2; {
		if time.Now().After(deadline) {
			t.Fatal("the command goes on")
		}
	}
}

func commandSlow(t *testing.T, c guestv1.GuestServiceClient) {
	const n = 1_000_000
	x := begin(t, c, payloadVerb("bytes", fmt.Sprint(n)))
	if err := x.until("x"); err != nil {
		t.Fatal(err)
	}
	<-time.After(quietMax + time.Second)
	if _, out, _ := x.finish(); len(out) != n {
		t.Errorf("%d bytes of %d", len(out), n)
	}
}

func commandMany(t *testing.T, c guestv1.GuestServiceClient) {
	for i := range 16 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			if code, out, _ := begin(t, c, payloadVerb("print", "a", "then", "exit", fmt.Sprint(i))).finish(); code != int32(i) || out != "a\n" {
				t.Errorf("code %d, %q", code, out)
			}
		})
	}
}

// commandEnds stops the payload under a command.
func commandEnds(t *testing.T, c guestv1.GuestServiceClient) {
	x := begin(t, c, payloadVerb("trap", "0"))
	if err := x.until("ready"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stop(t.Context(), &guestv1.StopRequest{Signal: int32(unix.SIGKILL)}); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := x.finish(); code != 137 || x.exit.GetMessage() != endedMessage {
		t.Errorf("the command ended with %v", x.exit)
	}
	x = begin(t, c, payloadVerb("true"))
	if err := x.until(""); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a command after the payload: %v", err)
	}
}

// asApp is the user app of the test image.
func asApp(l *launch) {
	l.Account.UID, l.Account.GID, l.Account.Groups, l.Account.Home = 1000, 1000, []uint32{2000}, "/"
	l.Env = []string{"A=1"}
}

func TestCommands(t *testing.T) {
	h := runHere(t, []string{"print", "ready", "then", "sleep"}, asApp)
	has(t, &h.out, "ready")
	commands(t, h.client)
	commandEnds(t, h.client)
}

func TestNoPayload(t *testing.T) {
	c := serveHere(t, &agent{})
	x := begin(t, c, payloadVerb("true"))
	if err := x.until(""); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("exec: %v", err)
	}
	if _, err := c.Wait(t.Context(), &guestv1.WaitRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("wait: %v", err)
	}
	if r, err := c.State(t.Context(), &guestv1.StateRequest{}); err != nil || r.GetPhase() != guestv1.StateResponse_PHASE_READY {
		t.Errorf("state: %v, %v", r, err)
	}
	if _, err := c.Run(t.Context(), &guestv1.RunRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("run nothing: %v", err)
	}
	if _, err := c.Run(t.Context(), &guestv1.RunRequest{Args: []string{"/payload"}}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("run again: %v", err)
	}
}

// A panic of a handler ends that call.
func TestPanic(t *testing.T) {
	if err := answered("/guest/Wrong", func() error { panic("no") }); status.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
	ended := make(chan struct{})
	go guarded("part", func() { defer close(ended); panic("no") })
	<-ended
}
