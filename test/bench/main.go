// Command bench measures Capsule on whole machines in QEMU and prints the
// tables of docs/benchmarks.md. Boots run under -icount shift=0, where one
// instruction is one nanosecond of the machine's time, so that the seconds
// repeat whatever else this computer does; memory is read from the machine.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

func main() {
	// Also process 1 of a host, and runc in it.
	if own := map[string]func() error{hostArg: hostMain, runcArg: runcMain}[calledAs()]; own != nil {
		if err := own(); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		return
	}
	only := flag.String("only", "", "comma-separated parts, or peers for all of those: "+strings.Join(partNames(), ", "))
	write := flag.Bool("write", false, "also write the peers' tables to "+page)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := measure(ctx, *only, *write)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error: bench:", err)
		os.Exit(1)
	}
}

// calledAs is another role of this program, "" for none.
func calledAs() string {
	if name := filepath.Base(os.Args[0]); name == runcArg || len(os.Args) < 2 {
		return name
	}
	return os.Args[1]
}

// part is one table.
type part struct {
	name   string
	title  string
	method string
	run    func(*bench, context.Context) error
}

var parts = []part{
	{"size", "Size", sizeMethod, (*bench).size},
	{"boot", "Boot", bootMethod, (*bench).boot},
	{"memory", "Memory", memoryMethod, (*bench).memory},
	{"start", "Start of a container", startMethod, (*bench).start},
	{"guest", "Start of a microVM's guest", guestMethod, (*bench).guest},
	{"machines", "MicroVMs of one image", machinesMethod, (*bench).machines},
	{"scale", "Two hundred workloads", scaleMethod, (*bench).scale},
	{"bundle", "Update bundle", bundleMethod, (*bench).bundle},
	{"push", "Push of an update", pushMethod, (*bench).pushUpdate},
	{"rollback", "Rollback", rollbackMethod, (*bench).rollback},
	{"peers-size", "Beside Debian: size", peersSizeMethod, (*bench).peersSize},
	{"peers-boot", "Beside Debian: boot", peersBootMethod, (*bench).peersBoot},
	{"peers-memory", "Beside Debian: memory", peersMemoryMethod, (*bench).peersMemory},
	{"peers-start", "Beside Debian: start of a container", peersStartMethod, (*bench).peersStart},
	{"peers-fifty", "Beside Debian: fifty containers", peersFiftyMethod, (*bench).peersFifty},
	{"peers-daemon", "Beside Debian: the engine ends", peersDaemonMethod, (*bench).peersDaemon},
	{"peers-reboot", "Beside Debian: restart of the machine", peersRebootMethod, (*bench).peersReboot},
	{"peers-cut", "Beside Debian: power cuts", peersCutMethod, (*bench).peersCut},
}

func (p part) wanted(only string) bool {
	for name := range strings.SplitSeq(only, ",") {
		if name == "" || name == p.name || name == allPeers && strings.HasPrefix(p.name, allPeers+"-") {
			return true
		}
	}
	return false
}

// allPeers names all parts that have peers.
const allPeers = "peers"

func partNames() []string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// bench holds what the parts share.
type bench struct {
	dir        string // this run's machines and contexts
	repository string
	write      bool   // the page's tables that the program can
	version    string // of the capsule
	measuredOn string // a sentence
}

func measure(ctx context.Context, only string, write bool) error {
	repository, err := filepath.Abs(".")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "capsule-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{dir: dir, repository: repository, write: write}
	for name, value := range map[string]string{
		"XDG_CONFIG_HOME": filepath.Join(dir, "config"), "XDG_STATE_HOME": filepath.Join(dir, "state"),
	} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	if err := b.where(ctx); err != nil {
		return err
	}
	for _, p := range parts {
		if !p.wanted(only) {
			continue
		}
		fmt.Printf("\n## %s\n\n%s\n\n", p.title, p.method)
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// where tells what is measured on what.
func (b *bench) where(ctx context.Context) error {
	version, err := exec.CommandContext(ctx, filepath.Join(b.repository, "bin/capsulectl"), "version", "-o", "name").Output()
	if err != nil {
		return fmt.Errorf("capsulectl version: %w; run make build", err)
	}
	qemu, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
	if err != nil {
		return fmt.Errorf("QEMU's version: %w; run make deps", err)
	}
	b.version = firstLine(string(version))
	b.measuredOn = fmt.Sprintf("Measured on %s: %s, %s, a computer with %d processors.",
		time.Now().UTC().Format(time.DateOnly), b.version, firstLine(string(qemu)), runtime.NumCPU())
	fmt.Println(b.measuredOn)
	return nil
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// row prints one line of a table.
func row(cells ...any) {
	for _, c := range cells {
		fmt.Printf("| %v ", c)
	}
	fmt.Println("|")
}

// head prints the first two lines of a table.
func head(cells ...any) {
	row(cells...)
	fmt.Println(strings.Repeat("|---", len(cells)) + "|")
}
