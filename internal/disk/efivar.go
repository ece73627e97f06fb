package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// loaderGUID is the vendor of the boot loader interface's variables
// (systemd.io/BOOT_LOADER_INTERFACE).
const loaderGUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// EFIVars is where the firmware's variables are mounted.
const EFIVars = "/sys/firmware/efi/efivars"

// LoaderVar reads a text variable of the boot loader; NotFound when it isn't set
// or the machine has no EFI variables.
func LoaderVar(dir, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, name+"-"+loaderGUID))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("loader variable %q: %w", name, errdefs.ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("loader variable %q: %w", name, err)
	}
	return parseEFIText(b)
}

// parseEFIText reads four bytes of attributes and UTF-16 with an end mark.
func parseEFIText(b []byte) (string, error) {
	if len(b) < 4 || len(b)%2 != 0 {
		return "", fmt.Errorf("loader variable of %d bytes: %w", len(b), errdefs.ErrDataLoss)
	}
	var units []uint16
	for at := 4; at < len(b); at += 2 {
		units = append(units, binary.LittleEndian.Uint16(b[at:]))
	}
	text, _, _ := strings.Cut(string(utf16.Decode(units)), "\x00")
	return text, nil
}

// BootedESP is the unique id of the ESP that the loader, or else the kernel's
// stub, was read from.
func BootedESP(dir string) (string, error) {
	for _, name := range []string{"LoaderDevicePartUUID", "StubDevicePartUUID"} {
		if id, err := LoaderVar(dir, name); err == nil && id != "" {
			return strings.ToLower(id), nil
		}
	}
	return "", fmt.Errorf("the firmware doesn't say which partition it booted from: %w", errdefs.ErrNotFound)
}

// RemoveLoaderVar removes a text variable of the boot loader and says what it was;
// "" when it isn't set. A content that can't be read doesn't keep it.
func RemoveLoaderVar(dir, name string) (was string, err error) {
	file := filepath.Join(dir, name+"-"+loaderGUID)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err == nil {
		was, err = parseEFIText(b)
	}
	if err != nil || was == "" {
		was = "unreadable"
	}
	if err := mutable(file); err != nil {
		return was, fmt.Errorf("loader variable %q: %w", name, err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return was, fmt.Errorf("remove loader variable %q: %w", name, err)
	}
	return was, nil
}

const immutableFlag = 0x10 // FS_IMMUTABLE_FL of linux/fs.h

// mutable takes the flag away with which efivarfs guards all variables that it
// doesn't know (kernel Documentation/filesystems/efivarfs.rst).
func mutable(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if errors.Is(err, unix.ENOTTY) || err == nil && flags&immutableFlag == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read flags: %w", err)
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags&^immutableFlag)); err != nil {
		return fmt.Errorf("take the immutable flag away: %w", err)
	}
	return nil
}
