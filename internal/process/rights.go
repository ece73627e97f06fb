package process

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// capabilityNumbers of the names in Capabilities.
var capabilityNumbers = map[string]int{
	"CAP_CHOWN":            unix.CAP_CHOWN,
	"CAP_DAC_OVERRIDE":     unix.CAP_DAC_OVERRIDE,
	"CAP_FOWNER":           unix.CAP_FOWNER,
	"CAP_FSETID":           unix.CAP_FSETID,
	"CAP_KILL":             unix.CAP_KILL,
	"CAP_NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE,
	"CAP_SETFCAP":          unix.CAP_SETFCAP,
	"CAP_SETGID":           unix.CAP_SETGID,
	"CAP_SETPCAP":          unix.CAP_SETPCAP,
	"CAP_SETUID":           unix.CAP_SETUID,
	"CAP_SYS_CHROOT":       unix.CAP_SYS_CHROOT,
}

// CapabilitySet is a bit for each name.
func CapabilitySet(names []string) (set uint64, err error) {
	for _, name := range names {
		n, ok := capabilityNumbers[name]
		if !ok {
			return 0, fmt.Errorf("capability %q is not known here", name)
		}
		set |= 1 << n
	}
	return set, nil
}

// Become gives the calling thread, which is about to become a program, to the
// account. Root keeps the capabilities named, and others have none in effect; no
// program gives it any more.
func Become(who Account, capabilities []string) error {
	set, err := CapabilitySet(capabilities)
	if err != nil {
		return err
	}
	if err := dropOthers(set); err != nil {
		return err
	}
	if err := setAccount(who); err != nil {
		return err
	}
	if who.UID != 0 {
		set = 0
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(set), Permitted: uint32(set)},
		{Effective: uint32(set >> 32), Permitted: uint32(set >> 32)},
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	return nil
}

// dropOthers takes what is not in the set from all that will ever run.
func dropOthers(set uint64) error {
	for n := range 64 {
		if set&(1<<n) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // the kernel has no more
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", n, err)
		}
	}
	return nil
}

// setAccount changes the calling thread only, as it becomes the program.
func setAccount(who Account) error {
	groups := append([]uint32{}, who.Groups...)
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
	if errno != 0 {
		return fmt.Errorf("set groups of %s: %w", who, errno)
	}
	gid, uid := uintptr(who.GID), uintptr(who.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("become %s: %w", who, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("become %s: %w", who, errno)
	}
	return nil
}
