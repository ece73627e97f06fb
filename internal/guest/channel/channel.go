// Package channel is the line between the capsule and the agent in a microVM:
// the listener in the guest and the dialer of the capsule. Either is a plain
// stream for gRPC, which does its own multiplexing.
//
// On a capsule the line is vsock. Where the host has no vhost-vsock it is a
// virtio-serial port, which is a pipe of bytes without connections: what one
// side wrote before the other was replaced is still in it. So each connection
// begins with a handshake, in lines:
//
//	capsule                         guest
//	hello NONCE, again and again ─▶ drops all that is no such line
//	drops all that is no such ◀──── ready NONCE, once
//	go NONCE ─────────────────────▶ the stream begins after it
//
// Nothing of an older connection passes: its nonce is another one.
package channel

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	// Port is where the agent listens on vsock.
	Port = 1024
	// PortName is the name of the virtio-serial port.
	PortName = "capsule.agent"
)

// Words of the handshake.
const (
	mark    = "capsule-channel"
	hello   = "hello"
	ready   = "ready"
	proceed = "go"
)

// lineMax bounds a line of the handshake, and so what is kept of a peer that
// sends anything else.
const lineMax = 128

// line makes a line of the handshake. It begins with the end of a line, so that
// whatever was there before is none of it.
func line(word, nonce string) []byte {
	return fmt.Appendf(nil, "\n%s %s %s\n", mark, word, nonce)
}

// readLine gives the next line of the handshake and drops all before it.
func readLine(r *bufio.Reader) (word, nonce string, err error) {
	for whole := true; ; {
		text, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			whole = false // what follows is the rest of this one
			continue
		}
		if err != nil {
			return "", "", err
		}
		if fields := strings.Split(strings.TrimSuffix(string(text), "\n"), " "); whole && len(fields) == 3 && fields[0] == mark {
			return fields[1], fields[2], nil
		}
		whole = true
	}
}

// newReader reads lines of at most lineMax.
func newReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, lineMax) }

// answer is the guest's side: it returns when a capsule has begun a stream.
func answer(r *bufio.Reader, w io.Writer) error {
	answered := ""
	for {
		word, nonce, err := readLine(r)
		switch {
		case err != nil:
			return err
		case word == hello && nonce != answered:
			// Once only: a second answer would stand in the stream.
			if _, err := w.Write(line(ready, nonce)); err != nil {
				return err
			}
			answered = nonce
		case word == proceed && nonce == answered && nonce != "":
			return nil
		}
	}
}

// await is the capsule's side, after its hello.
func await(r *bufio.Reader, nonce string) error {
	for {
		word, got, err := readLine(r)
		if err != nil {
			return err
		}
		if word == ready && got == nonce {
			return nil
		}
	}
}
