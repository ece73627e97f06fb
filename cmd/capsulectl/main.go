// Command capsulectl is the operator's side of Capsule: it turns commands into
// calls of the API and answers into text. One file per command; ui.go is the
// only place that writes to the terminal.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(capsulectl()) }

// capsulectl runs one command line and gives its exit code.
func capsulectl() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return execute(ctx, newTerminal(), os.Args[1:])
}
