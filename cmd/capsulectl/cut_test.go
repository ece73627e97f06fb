//go:build linux

package main

import (
	"io"
	"net"
	"sync"
)

// cutAfter bytes of a connection is where a network between client and capsule
// breaks, in either direction.
const cutAfter = 1 << 20

// cutNetwork gives an address from which all goes to the one given, until it is cut
// after so many bytes.
func cutNetwork(address string, after int64, defers func(func())) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	var parts sync.WaitGroup
	parts.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			parts.Go(func() { pass(client, address, after) })
		}
	})
	defers(func() {
		listener.Close()
		parts.Wait()
	})
	return listener.Addr().String(), nil
}

// pass copies both ways until one ends, which is the end of both.
func pass(client net.Conn, address string, after int64) {
	defer client.Close()
	capsule, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer capsule.Close()
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{client, capsule}, {capsule, client}} {
		go func() {
			io.CopyN(way[1], way[0], after) //nolint:errcheck // its end is what is wanted
			ended <- struct{}{}
		}()
	}
	<-ended
}
