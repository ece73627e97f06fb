//go:build linux

package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

func TestFaultOfCommandLine(t *testing.T) {
	for line, want := range map[string]string{
		"":                                      "",
		"quiet gpt\n":                           "",
		"quiet capsule.fault=serve-exits gpt\n": "serve-exits",
		"x.capsule.fault=serve-exits":           "",
	} {
		if got := faultOf(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// The test's own process is who would be serve.
func TestRelay(t *testing.T) {
	if os.Getenv("RELAY") != "" {
		if err := relay("serve-crashes", strconv.Itoa(os.Getppid())); err != nil {
			t.Fatal(err)
		}
		return
	}
	dir := t.TempDir()
	listen := func(name string) *net.UnixConn {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	pid1, own := listen("pid1"), listen("own")
	socket, err := own.File()
	if err != nil {
		t.Fatal(err)
	}
	// What gets the signal is a process in between, which starts the relay.
	cmd := exec.Command("/bin/sh", "-c", `"$0" -test.run=TestRelay & wait`, os.Args[0])
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Env = append(os.Environ(), "RELAY=1", noticesEnv+"="+filepath.Join(dir, "pid1"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	serve, err := net.Dial("unixgram", filepath.Join(dir, "own"))
	if err != nil {
		t.Fatal(err)
	}
	defer serve.Close()
	buffer := make([]byte, 100)
	for _, text := range []string{"WATCHDOG=1", "READY=1\n"} {
		if _, err := serve.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		n, err := pid1.Read(buffer)
		if got := string(buffer[:n]); got != text || err != nil {
			t.Fatalf("process 1 got %q, %v, want %q", got, err, text)
		}
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(interface{ Signaled() bool }); !status.Signaled() {
		t.Errorf("ended with %v, want killed", cmd.ProcessState)
	}
}
