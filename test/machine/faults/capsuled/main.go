//go:build linux

// Command capsuled takes the place of the real one in roots that are to fail: it does
// what the word capsule.fault= of the kernel's command line says, and else becomes the
// real one, which lies beside it.
//
//	init-exits     process 1 ends
//	init-hangs     process 1 does nothing, from its start on
//	init-freezes   process 1 stands still as soon as serve has said that it's ready
//	serve-exits    serve ends at once
//	serve-hangs    serve does nothing, and signals that it may ignore don't end it
//	serve-freezes  serve stands still as soon as it has said that it's ready
//	serve-crashes  serve is killed as soon as it has said that it's ready
//	end-freezes    process 1 stands still as soon as it has told serve to end
//
// When process 1 stands still, the console says so, with the time since the kernel's
// start: from then on only a watchdog brings the machine back.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	realProgram = "/usr/bin/capsuled.real"
	noticesEnv  = "NOTIFY_SOCKET"
	ownNotices  = "/run/capsule/notify-fault"
)

// The faults, by their place: process 1 before it becomes the real one, serve before
// it becomes the real one, and the relay once serve is ready.
var (
	ofInit = map[string]func() error{
		"init-exits": func() error { return nil },
		"init-hangs": standStill,
	}
	ofServe = map[string]func() error{
		"serve-exits": func() error { return errors.New("told to exit") },
		"serve-hangs": hang,
		"end-freezes": freezeAtEnd,
	}
	onReady = map[string]func(serve int) error{
		"init-freezes":  func(int) error { return freezeInit() },
		"serve-freezes": func(serve int) error { return unix.Kill(serve, unix.SIGSTOP) },
		"serve-crashes": func(serve int) error { return unix.Kill(serve, unix.SIGKILL) },
	}
)

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch fault := fault(); {
	case len(args) == 3 && args[1] == "relay":
		return relay(fault, args[2])
	case os.Getpid() == 1 && ofInit[fault] != nil:
		return ofInit[fault]()
	case len(args) == 2 && args[1] == "serve":
		if err := fail(fault); err != nil {
			return err
		}
	}
	return unix.Exec(realProgram, args, os.Environ())
}

// fault reads the kernel's command line, as soon as it can be read.
func fault() string {
	line, _ := os.ReadFile("/proc/cmdline")
	return faultOf(string(line))
}

func faultOf(cmdline string) string {
	for _, word := range strings.Fields(cmdline) {
		if fault, ok := strings.CutPrefix(word, "capsule.fault="); ok {
			return fault
		}
	}
	return ""
}

// fail is serve's share. It returns nil when the real one is to run for a while.
func fail(fault string) error {
	switch {
	case ofServe[fault] != nil:
		return ofServe[fault]()
	case onReady[fault] != nil:
		return startRelay()
	}
	return nil
}

// hang does nothing for ever, and signals that it may ignore don't end it.
func hang() error {
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored)
	for range ignored {
	}
	return nil
}

// startRelay puts a relay between what becomes the real serve and process 1.
func startRelay() error {
	if err := os.Remove(ownNotices); err != nil && !os.IsNotExist(err) {
		return err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: ownNotices, Net: "unixgram"})
	if err != nil {
		return err
	}
	socket, err := conn.File()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "relay", strconv.Itoa(os.Getpid()))
	cmd.ExtraFiles, cmd.Stderr = []*os.File{socket}, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	return os.Setenv(noticesEnv, ownNotices)
}

// relay hands notices on to process 1, until the one that the fault waits for. It
// ends with serve, its parent: another may have got the number by then.
func relay(fault, serve string) error {
	pid, err := strconv.Atoi(serve)
	if err != nil {
		return err
	}
	from, err := net.FilePacketConn(os.NewFile(3, "notices"))
	if err != nil {
		return err
	}
	to, err := net.Dial("unixgram", os.Getenv(noticesEnv))
	if err != nil {
		return err
	}
	buffer := make([]byte, 4096)
	for {
		n, _, err := from.ReadFrom(buffer)
		if err != nil || os.Getppid() != pid {
			return err
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return err
		}
		if strings.Contains(string(buffer[:n]), "READY=1") {
			return onReady[fault](pid)
		}
	}
}
