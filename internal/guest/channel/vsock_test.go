package channel

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A guest that takes longer than the kernel's own two seconds is waited for, and
// no longer than the caller has patience.
func TestDialSlowVsock(t *testing.T) {
	vhost, err := os.OpenFile("/dev/vhost-vsock", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no vhost-vsock here: ", err)
	}
	defer vhost.Close()
	// A machine that has its address and was not started takes nothing.
	const cid, ownRequest, cidRequest = 4242, 0xaf01, 0x4008af60 // VHOST_SET_OWNER, VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h
	if err := unix.IoctlSetInt(int(vhost.Fd()), ownRequest, 0); err != nil {
		t.Fatal(err)
	}
	address := uint64(cid)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, vhost.Fd(), cidRequest, uintptr(unsafe.Pointer(&address))); errno != 0 {
		t.Fatal(errno)
	}
	const patience = 4 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := time.Now()
	conn, err := DialVsock(ctx, cid)
	if err == nil {
		conn.Close()
		t.Fatal("connected to nobody")
	}
	if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took < patience || took > patience+2*time.Second {
		t.Errorf("gave up after %v: %v; want after %v", took, err, patience)
	}
	if _, err := DialVsock(t.Context(), cid+1); !errors.Is(err, unix.ENODEV) {
		t.Errorf("without a machine: %v", err)
	}
}
