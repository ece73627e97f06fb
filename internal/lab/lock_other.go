//go:build unix && !linux

package lab

import "golang.org/x/sys/unix"

const getLock = unix.F_GETLK
