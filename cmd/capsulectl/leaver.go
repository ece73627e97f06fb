package main

import (
	"bytes"
	"io"
)

// leaveKey is Ctrl-], as in telnet.
const leaveKey = 0x1d

// leaver ends an input at Ctrl-].
type leaver struct {
	in   io.Reader
	left bool
}

func (l *leaver) Read(p []byte) (int, error) {
	if l.left {
		return 0, io.EOF
	}
	n, err := l.in.Read(p)
	if i := bytes.IndexByte(p[:n], leaveKey); i >= 0 {
		l.left = true
		if i == 0 {
			return 0, io.EOF
		}
		return i, nil
	}
	return n, err
}
