package main

import (
	"fmt"
	"net"
	"net/http"

	"capsule/internal/imagetest/ledger"
)

// keepLedger FILE ADDRESS keeps a ledger that is written over HTTP, and verifies at its
// start what is there. It ends with the first error: what the disk holds is then read
// again by the next start.
func keepLedger(args []string) int {
	w, err := ledger.Open(argument(args, 0, "ledger"))
	if err != nil {
		return fail(err)
	}
	fmt.Printf("verified %d records; %d torn bytes cut off\n", w.Found.Last.Number, w.Found.Torn)
	listener, err := net.Listen("tcp", argument(args, 1, ":8080"))
	if err != nil {
		return fail(err)
	}
	ended := make(chan error, 1)
	tell := func(err error) {
		select {
		case ended <- err:
		default: // it ends already
		}
	}
	server := http.Server{Handler: ledger.Handler(w, tell)}
	go func() { tell(server.Serve(listener)) }()
	return fail(<-ended)
}
