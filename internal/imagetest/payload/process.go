package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// args prints each argument, quoted, on its own line.
func args(args []string) int {
	for _, a := range args {
		fmt.Printf("%q\n", a)
	}
	return 0
}

// env prints the environment, quoted, or the value of one name.
func env(args []string) int {
	if len(args) > 0 {
		value, ok := os.LookupEnv(args[0])
		if !ok {
			return 1
		}
		fmt.Println(value)
		return 0
	}
	for _, e := range os.Environ() {
		fmt.Printf("%q\n", e)
	}
	return 0
}

func cwd([]string) int {
	dir, err := os.Getwd()
	if err != nil {
		return fail(err)
	}
	fmt.Println(dir)
	return 0
}

// date prints the time in nanoseconds since 1970.
func date([]string) int {
	fmt.Println(time.Now().UnixNano())
	return 0
}

func hostname([]string) int {
	name, err := os.Hostname()
	if err != nil {
		return fail(err)
	}
	fmt.Println(name)
	return 0
}

// id prints "uid=U gid=G groups=[...]".
func id([]string) int {
	groups, _ := os.Getgroups()
	fmt.Printf("uid=%d gid=%d groups=%v\n", os.Getuid(), os.Getgid(), groups)
	return 0
}

// status prints lines of /proc/self/status whose names are given.
func status(args []string) int {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fail(err)
	}
	for line := range strings.Lines(string(data)) {
		for _, name := range args {
			if strings.HasPrefix(line, name+":") {
				fmt.Print(line)
			}
		}
	}
	return 0
}

func exit(args []string) int {
	code, err := strconv.Atoi(argument(args, 0, "0"))
	if err != nil {
		return fail(err)
	}
	os.Exit(code)
	return 0
}

// forever is a sleep, since the Go runtime takes a select{} for a deadlock.
const forever = time.Duration(1<<63 - 1)

// sleep waits for a Go duration, for ever without one.
func sleep(args []string) int {
	if len(args) == 0 {
		time.Sleep(forever)
	}
	d, err := time.ParseDuration(args[0])
	if err != nil {
		return fail(err)
	}
	time.Sleep(d)
	return 0
}

// trap SIGNAL [CODE] [DELAY] prints "ready", waits for the signal, prints
// "got SIGNAL", waits for the delay and exits with the code. The signal 0
// ignores every signal that can be.
func trap(args []string) int {
	number, err := strconv.Atoi(argument(args, 0, "15"))
	if err != nil {
		return fail(err)
	}
	ch := make(chan os.Signal, 1)
	if number == 0 {
		signal.Ignore()
		fmt.Println("ready")
		time.Sleep(forever)
	}
	signal.Notify(ch, syscall.Signal(number))
	fmt.Println("ready")
	<-ch
	fmt.Println("got", number)
	if delay, err := time.ParseDuration(argument(args, 2, "0s")); err == nil {
		time.Sleep(delay)
	}
	return exit([]string{argument(args, 1, "0")})
}

// kill SIGNAL [PID] sends a signal, to itself without a process.
func kill(args []string) int {
	number, _ := strconv.Atoi(argument(args, 0, "15"))
	pid, err := strconv.Atoi(argument(args, 1, strconv.Itoa(os.Getpid())))
	if err != nil {
		return fail(err)
	}
	if err := syscall.Kill(pid, syscall.Signal(number)); err != nil {
		return fail(err)
	}
	time.Sleep(time.Second)
	return 0
}

// spawn starts the verb that follows as a child, in a session of its own, and
// goes on without waiting for it.
func spawn(args []string) int {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	fmt.Println("spawned", cmd.Process.Pid)
	return 0
}

// bomb makes as many processes as it can, each of which makes as many as it can, and
// tries on when it can't.
func bomb([]string) int {
	fmt.Println("bombing")
	explode()
	return 0
}

// explode never returns. A child has this thread alone, and nothing of the runtime.
//
//go:nosplit
func explode() {
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
	}
}

// allocate MIB touches that much memory and keeps it while it goes on.
func allocate(args []string) int {
	mib, err := strconv.Atoi(argument(args, 0, "16"))
	if err != nil {
		return fail(err)
	}
	for range mib {
		block, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return fail(err)
		}
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
	}
	fmt.Println("allocated", mib)
	return 0
}

// stty prints "ROWS COLUMNS" of the terminal on stdin, again at each change
// when told "watch".
func stty(args []string) int {
	changed := make(chan os.Signal, 8)
	signal.Notify(changed, syscall.SIGWINCH)
	for {
		size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			return fail(err)
		}
		fmt.Println(size.Row, size.Col)
		if argument(args, 0, "") != "watch" {
			return 0
		}
		<-changed
	}
}
