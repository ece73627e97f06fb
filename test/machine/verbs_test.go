//go:build machine

package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"capsule/internal/drivertest"
	"capsule/internal/imagetest"
	"capsule/internal/lab"
)

// testKey holds the testing.TB of a script.
const testKey = "test"

// guestsHost is this machine as seen from a lab capsule (QEMU's user network).
const guestsHost = "10.0.2.2"

// verbs of the scripts beside testscript's own.
var verbs = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"archive":   archive,
	"await":     await,
	"bundle":    makeBundle,
	"console":   console,
	"crash":     crash,
	"damage":    damage,
	"digest":    digest,
	"esp":       esp,
	"fetch":     fetch,
	"grow":      grow,
	"image":     image,
	"keys":      keys,
	"machine":   machine,
	"registry":  startRegistry,
	"prompt":    prompt,
	"reset":     reset,
	"spoil":     spoil,
	"stick":     stick,
	"medium":    medium,
	"ondisk":    onDisk,
	"same":      same,
	"screen":    screen,
	"cutduring": cutduring,
	"terminal":  terminal,
}

// await DURATION REGEXP COMMAND…: runs the command until what it prints
// matches, once more when the time is over: the one before may have hung.
func await(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 3, "await DURATION REGEXP COMMAND...")
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	want, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	var out []byte
	last, deadline := false, time.Now().Add(limit)
	for ; !last; time.Sleep(200 * time.Millisecond) {
		last = time.Now().After(deadline)
		cmd := exec.Command(args[2], args[3:]...)
		cmd.Env = append(os.Environ(), "CAPSULE_HOST="+ts.Getenv("CAPSULE_HOST"))
		out, err = cmd.CombinedOutput()
		if want.Match(out) != neg {
			_, _ = ts.Stdout().Write(out)
			return
		}
	}
	ts.Fatalf("no match for %q within %v in: %s (%v)", args[1], limit, out, err)
}

// fetch URL [TEXT]: asks until the answer is 200 and contains the text, for
// at most 10 min; with "!" once, and that must fail within 5 s.
func fetch(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 1, "fetch URL [TEXT]")
	text := ""
	if len(args) > 1 {
		text = args[1]
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	deadline := time.Now().Add(10 * time.Minute)
	for {
		body, err := get(client, args[0])
		ok := err == nil && strings.Contains(body, text)
		if neg {
			if ok {
				ts.Fatalf("%s answers: %s", args[0], body)
			}
			return
		}
		if ok {
			_, _ = io.WriteString(ts.Stdout(), body)
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("fetch %s: %v: %q", args[0], err, body)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func get(client *http.Client, url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", resp.Status)
	}
	return string(body), err
}

// image FILE NAME [+DIR/FILE=TEXT…] [ARGS…]: writes an image of the payload
// program, which runs with the arguments, as docker save does. Files of its own
// stand in a layer on top, owned by user 1000, in folders that others may not read.
func image(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 2, "image FILE NAME [+DIR/FILE=TEXT...] [ARGS...]")
	t := ts.Value(testKey).(testing.TB)
	var layers []*imagetest.Layer
	words := args[2:]
	for len(words) > 0 && strings.HasPrefix(words[0], "+") {
		name, text, _ := strings.Cut(words[0][1:], "=")
		layers = append(layers, imagetest.NewLayer().Owner(1000, 1000).Dir(filepath.Dir(name), 0o750).File(name, 0o640, text))
		words = words[1:]
	}
	archive := imagetest.DockerSave(imagetest.PayloadImage(t, words, layers...), args[1])
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), archive, 0o644))
}

// registry VARIABLE REPOSITORY:TAG [ARGS…]: starts a registry on loopback that
// holds an image of the payload program in three layers, and sets the variable
// to its address as the capsule sees it.
func startRegistry(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 2, "registry VARIABLE REPOSITORY:TAG [ARGS...]")
	t := ts.Value(testKey).(testing.TB)
	r := imagetest.Registry(t, imagetest.RegistryOptions{})
	repo, tag, _ := strings.Cut(args[1], ":")
	zstd := imagetest.NewLayer().File("etc/motd", 0o644, "zstd layer\n")
	zstd.Compression = imagetest.Zstd
	r.Push(t, repo, tag, imagetest.PayloadImage(t, args[2:], zstd, imagetest.NewLayer().File("etc/top", 0o644, "top\n")))
	_, port, _ := strings.Cut(r.Host, ":")
	ts.Setenv(args[0], guestsHost+":"+port)
}

// boots holds, by machine, where the console's log of its last start begins.
var boots sync.Map

// machine VERB NAME [ARGS…]:
//
//	create NAME [QEMU ARGS…]  makes a machine that no flag of `lab up` makes: 512 MiB,
//	                          port 8080 published, no way out of its network; `up` starts it
//	up NAME [FLAGS…]          is `capsulectl lab up`
//	refit NAME [QEMU ARGS…]   gives a stopped machine other QEMU arguments
//	start NAME                powers it on; ready NAME waits for its API
//	cut NAME                  cuts its power, as SIGKILL of QEMU
//	ended NAME                waits until it has turned itself off
//	link NAME on|off          plugs its network cable in, or out
func machine(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 2, "machine create|up|refit|start|ready|cut|ended|link NAME [ARGS...]")
	verb, name := args[0], args[1]
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	switch verb {
	case "create":
		_, err := lab.Create(ctx, lab.Options{
			Name: name, Image: filepath.Join(repository, "build/capsule.img"), MemoryBytes: 512 << 20,
			Publish: []lab.Publish{{Port: 8080, Protocol: "tcp"}}, Restrict: true, Args: args[2:],
		})
		ts.Check(err)
		return
	case "up":
		upMachine(ts, name, args[2:])
		return
	}
	m, err := lab.Attach("", name)
	ts.Check(err)
	switch verb {
	case "cut":
		ts.Check(m.Kill(ctx))
	case "refit":
		m.Args = args[2:]
		data, err := json.Marshal(m)
		ts.Check(err)
		ts.Check(os.WriteFile(filepath.Join(m.Dir, "machine.json"), data, 0o600))
	case "start":
		if info, err := os.Stat(m.ConsoleLog()); err == nil {
			boots.Store(name, info.Size())
		}
		ts.Check(m.Start(ctx))
	case "ready":
		if err := m.WaitReady(ctx); err != nil {
			ts.Fatalf("%v\n%s", err, consoleTail(name))
		}
	case "ended":
		for deadline := time.Now().Add(5 * time.Minute); m.Running(); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				ts.Fatalf("%s still runs\n%s", name, consoleTail(name))
			}
		}
	case "link":
		need(ts, args, 3, "machine link NAME on|off")
		_, err := m.QMP(ctx, "set_link", map[string]any{"name": "nic0", "up": args[2] == "on"})
		ts.Check(err)
	default:
		ts.Fatalf("machine: no verb %q", verb)
	}
}

// upMachine also tells the script where the machine is reached.
func upMachine(ts *testscript.TestScript, name string, flags []string) {
	began := time.Now()
	ts.Check(up(name, flags...))
	ts.Logf("%s is up after %.1f s", name, time.Since(began).Seconds())
	m, err := lab.Attach("", name)
	ts.Check(err)
	t := ts.Value(testKey).(testing.TB)
	ts.Defer(func() {
		if t.Failed() {
			logMachine(t, name)
		}
		_ = m.Kill(context.Background())
	})
	ts.Setenv("CAPSULE_HOST", name)
	for _, p := range m.Publish {
		ts.Setenv(fmt.Sprintf("%s_%d", strings.ToUpper(p.Protocol), p.Port), fmt.Sprintf("127.0.0.1:%d", p.HostPort))
	}
}

// onDisk NAME TEXT: succeeds when the disk of a machine that is off holds a text,
// wherever on it.
func onDisk(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 2, "ondisk NAME TEXT")
	m, err := lab.Attach("", args[0])
	ts.Check(err)
	found, err := drivertest.FileHolds(m.Disk(), args[1])
	ts.Check(err)
	if found == neg {
		ts.Fatalf("%s holds %q: %v", m.Disk(), args[1], found)
	}
}

// console NAME DURATION REGEXP: waits until the machine's console showed it
// since its last start by this script.
func console(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 3, "console NAME DURATION REGEXP")
	limit, err := time.ParseDuration(args[1])
	ts.Check(err)
	want, err := regexp.Compile(args[2])
	ts.Check(err)
	onConsole(ts, args[0], limit, want)
}

func need(ts *testscript.TestScript, args []string, n int, usage string) {
	if len(args) < n {
		ts.Fatalf("usage: %s", usage)
	}
}
