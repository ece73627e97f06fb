package main

import (
	"os"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"
)

var forwarded = []os.Signal{os.Interrupt, syscall.SIGTERM}

// sizeEvery is between looks at the terminal: Windows tells nothing of changes.
const sizeEvery = 500 * time.Millisecond

func watchSize(done <-chan struct{}, changed func()) {
	tick := time.NewTicker(sizeEvery)
	defer tick.Stop()
	for last := terminalSize(); ; {
		select {
		case <-done:
			return
		case <-tick.C:
			if now := terminalSize(); !proto.Equal(now, last) {
				last = now
				changed()
			}
		}
	}
}
