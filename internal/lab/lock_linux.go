package lab

import "golang.org/x/sys/unix"

// getLock sees locks of open files, which QEMU takes on Linux, and of processes.
const getLock = unix.F_OFD_GETLK
