package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	guestv1 "capsule/api/capsule/guest/v1"
	"capsule/internal/cgroup"
	"capsule/internal/process"
)

// printed runs a payload to its end and gives what it wrote.
func printed(t *testing.T, args []string, change ...func(*launch)) string {
	t.Helper()
	h := runHere(t, args, change...)
	if e := end(t, h.client); e.GetCode() != 0 || e.GetUnmountError() != "" {
		t.Fatalf("%v ended with %v, stderr %q", args, e, h.errOut.String())
	}
	return h.out.String()
}

func TestSurroundings(t *testing.T) {
	const leaked = 200
	if err := unix.Dup2(2, leaked); err != nil { // stays open over exec
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(leaked) }()
	out := printed(t, []string{"cwd", "then", "hostname", "then", "cat", "/etc/hosts", "/etc/resolv.conf", "then", "ls", "/proc/self/fd"},
		func(l *launch) { l.Cwd = "/made/here" })
	if want := "/made/here\nweb\nhosts of the test\nresolv.conf of the test\n0\n"; !strings.HasPrefix(out, want) || strings.Contains(out, fmt.Sprint(leaked)) {
		t.Errorf("got %q, want %q", out, want)
	}
	out = printed(t, []string{"ls", "/dev", "then", "stat", "/dev/null", "/dev/ptmx", "/dev/shm", "then", "ls", "/proc/self/task"})
	for _, want := range []string{"null\n", "tty\n", "urandom\n", "mqueue\n", "Dcrw-rw-rw- 0:0", "-> pts/ptmx", "dtrwxrwxrwx 0:0"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	mounts := printed(t, []string{"cat", "/proc/self/mountinfo"})
	for _, want := range []string{" /proc ", " /sys ro,nosuid,nodev,noexec", " /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime", " /proc/sys ro", "/null /proc/keys ", " - mqueue "} {
		if !strings.Contains(mounts, want) {
			t.Errorf("no %q in the mounts:\n%s", want, mounts)
		}
	}
	if strings.Contains(mounts, "/run/") || strings.Contains(mounts, cgroup.Root+"/unified") {
		t.Errorf("mounts of the agent are in reach:\n%s", mounts)
	}
	out = printed(t, []string{"cat", "/proc/self/cgroup"})
	if !strings.Contains(out, "0::/\n") {
		t.Errorf("its cgroup is %q", out)
	}
}

func TestEnvironment(t *testing.T) {
	env := []string{"A=x=y=", "B==", "C=l1\nl2", "D=", `E="q"`}
	out := printed(t, []string{"cat", "/proc/1/environ"}, func(l *launch) { l.Env = env })
	want := append(env, "PATH="+process.DefaultPath, "HOME=/root")
	if diff := cmp.Diff(want, strings.Split(strings.TrimSuffix(out, "\x00"), "\x00")); diff != "" {
		t.Error(diff)
	}
	out = printed(t, []string{"x"}, func(l *launch) {
		l.Args, l.Env = []string{"print", "found by PATH"}, []string{"PATH=/nosuch:/etc/passwd:/opt"}
		link(t, l.Root, "opt/print", "/payload")
	})
	if out != "found by PATH\n" {
		t.Errorf("printed %q", out)
	}
}

func link(t *testing.T, root, name, target string) {
	t.Helper()
	name = filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(name)
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

// The links of an image lead to nothing outside of it, and what they lead to is
// made there.
func TestLinksOfTheImage(t *testing.T) {
	out := printed(t, []string{"cat", "/etc/resolv.conf", "/run/systemd/stub.conf", "then", "stat", "/etc/hosts"}, func(l *launch) {
		link(t, l.Root, "etc/resolv.conf", "../../../run/systemd/stub.conf")
		link(t, l.Root, "etc/hosts", "/deep/../etc2/hosts")
		link(t, l.Root, "etc2", "/data/etc")
	})
	if strings.Count(out, "resolv.conf of the test\n") != 2 {
		t.Errorf("printed %q", out)
	}
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		_, err := tryHere(t, []string{"true"}, func(l *launch) {
			if err := os.RemoveAll(filepath.Join(l.Root, dir)); err != nil {
				t.Fatal(err)
			}
			link(t, l.Root, dir, "/etc")
		})
		if err == nil || !strings.Contains(err.Error(), "no folder") {
			t.Errorf("%s as a link: %v", dir, err)
		}
	}
}

func TestResolve(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	link(t, dir, "abs", dir+"/real")
	link(t, dir, "up", "../../../../../../../../..")
	link(t, dir, "circle", "circle")
	link(t, dir, "chain", "abs/x/../y")
	for name, want := range map[string]string{
		"/": "/", dir + "/none/a/../b": dir + "/none/b", dir + "/abs/f": dir + "/real/f",
		dir + "/up": "/", dir + "/chain/z": dir + "/real/y/z",
	} {
		if got, err := resolve(name); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", name, got, err, want)
		}
	}
	if got, err := resolve(dir + "/circle"); err == nil {
		t.Errorf("a circle led to %s", got)
	}
}

func TestVolumes(t *testing.T) {
	shut, open := t.TempDir(), t.TempDir()
	if err := os.WriteFile(shut+"/f", []byte("data\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := runHere(t, []string{"cat", "/ro/f", "then", "write", "/new/rw/g", "x", "then", "write", "/ro/g", "x"}, func(l *launch) {
		l.Shown = append(l.Shown, showing{shut, "/ro", true}, showing{open, "/new/rw", false})
	})
	if e := end(t, h.client); e.GetCode() != 1 || h.out.String() != "data\n" || !strings.Contains(h.errOut.String(), "read-only") {
		t.Errorf("ended with %v, printed %q and %q", e, h.out.String(), h.errOut.String())
	}
	if text, err := os.ReadFile(open + "/g"); string(text) != "x\n" {
		t.Errorf("the file is %q, %v", text, err)
	}
}

func TestRights(t *testing.T) {
	status := []string{"status", "NoNewPrivs", "CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb", "Groups"}
	set, err := process.CapabilitySet(process.Capabilities)
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%016x", set)
	none := fmt.Sprintf("%016x", 0)
	root := fmt.Sprintf("Groups:\t \nNoNewPrivs:\t1\nCapInh:\t%s\nCapPrm:\t%s\nCapEff:\t%s\nCapBnd:\t%s\nCapAmb:\t%s\n", none, all, all, all, none)
	user := strings.ReplaceAll(root, "\t"+all, "\t"+none)
	user = strings.Replace(user, "CapBnd:\t"+none, "CapBnd:\t"+all, 1)
	user = strings.Replace(user, "Groups:\t ", "Groups:\t2000 2001 ", 1)
	inOrder := func(text string) map[string]bool {
		lines := map[string]bool{}
		for line := range strings.Lines(text) {
			lines[line] = true
		}
		return lines
	}
	if diff := cmp.Diff(inOrder(root), inOrder(printed(t, status))); diff != "" {
		t.Errorf("root: %s", diff)
	}
	app := func(l *launch) {
		l.Account = process.Account{UID: 1000, GID: 1001, Groups: []uint32{2000, 2001}, Home: "/"}
	}
	if diff := cmp.Diff(inOrder(user), inOrder(printed(t, status, app))); diff != "" {
		t.Errorf("user: %s", diff)
	}
	// A user opens the streams by name, and starts in a folder of root.
	h := runHere(t, []string{"id", "then", "cat", "/proc/self/oom_score_adj", "then", "write", "/dev/stdout", "opened"}, app, func(l *launch) { l.Cwd = "/root" })
	end(t, h.client)
	if want := "uid=1000 gid=1001 groups=[2000 2001]\n200\nopened\n"; h.out.String() != want {
		t.Errorf("got %q and %q, want %q", h.out.String(), h.errOut.String(), want)
	}
	files := allowed(t)[0]
	if want, out := fmt.Sprintf("Max open files            %-20d %-20d", files.Soft, files.Hard), printed(t, []string{"cat", "/proc/self/limits"}, app); !strings.Contains(out, want) {
		t.Errorf("no %q in %s", want, out)
	}
}

func TestEndings(t *testing.T) {
	for _, tc := range []struct {
		args []string
		code int32
	}{
		{[]string{"true"}, 0},
		{[]string{"exit", "3"}, 3},
		{[]string{"spawn", "sleep", "1h", "then", "exit", "7"}, 7}, // which goes with it
	} {
		h := runHere(t, tc.args)
		if e := end(t, h.client); e.GetCode() != tc.code || e.GetOom() || e.GetUnmountError() != "" {
			t.Errorf("%v: %v", tc.args, e)
		}
		r, err := h.client.State(t.Context(), &guestv1.StateRequest{})
		if err != nil || r.GetPhase() != guestv1.StateResponse_PHASE_ENDED {
			t.Errorf("%v: %v, %v", tc.args, r, err)
		}
	}
	const n = 200_000
	h := runHere(t, []string{"lines", fmt.Sprint(n)})
	end(t, h.client)
	if out := h.out.String(); !strings.HasSuffix(out, fmt.Sprintf("line %d\n", n-1)) || strings.Count(out, "\n") != n {
		t.Errorf("%d lines, the last %q", strings.Count(out, "\n"), out[max(0, len(out)-20):])
	}
}

func TestNoSuchProgram(t *testing.T) {
	_, err := tryHere(t, nil, func(l *launch) { l.Args = []string{"/etc"} })
	if problem, ok := err.(*process.Problem); !ok || problem.Code != process.CannotRun { //nolint:errorlint // the very type
		t.Errorf("got %v", err)
	}
	_, err = tryHere(t, nil, func(l *launch) { l.Args = []string{"nosuch"} })
	if problem, ok := err.(*process.Problem); !ok || problem.Code != process.NotFound { //nolint:errorlint // the very type
		t.Errorf("got %v", err)
	}
}

func TestStop(t *testing.T) {
	for name, tc := range map[string]struct {
		args  []string
		grace time.Duration
		code  int32
		print string
	}{
		"in its own time": {[]string{"trap", "15", "4"}, patience, 4, "got 15"},
		"by force":        {[]string{"trap", "0"}, 100 * time.Millisecond, 137, ""},
		"at once":         {[]string{"trap", "15"}, 0, 137, ""},
	} {
		h := runHere(t, tc.args)
		has(t, &h.out, "ready")
		r, err := h.client.Stop(t.Context(), &guestv1.StopRequest{Signal: int32(unix.SIGTERM), GraceMs: tc.grace.Milliseconds()})
		if err != nil || r.GetEnding().GetCode() != tc.code || !strings.Contains(h.out.String(), tc.print) {
			t.Errorf("%s: %v, %v, printed %q", name, r, err, h.out.String())
		}
		again, err := h.client.Stop(t.Context(), &guestv1.StopRequest{Signal: int32(unix.SIGTERM), GraceMs: 1000})
		if err != nil || again.GetEnding().GetCode() != tc.code {
			t.Errorf("%s again: %v, %v", name, again, err)
		}
	}
}
