// Capsuled is the machine's software in one binary with two roles: as process 1 it
// keeps the machine running, and as "capsuled serve", its child, it does the rest.
// It also runs for a moment as the stage of each microVM's jail, and of each
// debug session.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	godebug "runtime/debug"

	"golang.org/x/sys/unix"

	"capsule/internal/debug"
	"capsule/internal/jail"
	"capsule/internal/version"
)

const usage = `capsuled runs on a capsule, not by hand:
  capsuled          as process 1: the machine
  capsuled serve    its API and workloads
  capsuled version
`

func main() {
	jail.Stage() // first: the stage of a jail is process 1 of its own namespace
	debug.Stage()
	if os.Getpid() == 1 {
		initMachine()
	}
	switch {
	case len(os.Args) == 2 && os.Args[1] == "serve":
		os.Exit(runServe())
	case len(os.Args) == 2 && os.Args[1] == "version":
		fmt.Println(version.Version)
	default:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
}

// serveMemory is what the daemon's own memory is kept to when much of it is garbage, as
// after a thousand answers at once; in use are some 20 MiB with two hundred workloads.
const serveMemory = 64 << 20

// runServe is the serve role until process 1 asks it to end.
func runServe() int {
	godebug.SetMemoryLimit(serveMemory)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := serve(ctx); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		return 1
	}
	return 0
}
