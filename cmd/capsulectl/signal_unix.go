//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// forwarded are the signals that a command in a workload gets from us.
var forwarded = []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT}

// watchSize calls changed at each new size of the terminal until done.
func watchSize(done <-chan struct{}, changed func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGWINCH)
	defer signal.Stop(signals)
	changed() // it may have, since the size was told
	for {
		select {
		case <-done:
			return
		case <-signals:
			changed()
		}
	}
}
