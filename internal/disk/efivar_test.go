package disk

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf16"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// setVar writes a variable as efivarfs shows it.
func setVar(t *testing.T, dir, name, text string) string {
	t.Helper()
	b := []byte{7, 0, 0, 0}
	for _, unit := range utf16.Encode([]rune(text + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	file := filepath.Join(dir, name+"-"+loaderGUID)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestRemoveLoaderVar(t *testing.T) {
	dir := t.TempDir()
	setVar(t, dir, "LoaderEntryDefault", "nixos-é.conf")
	setVar(t, dir, "LoaderEntrySelected", "capsule-slot_a.conf")
	if was, err := RemoveLoaderVar(dir, "LoaderEntryDefault"); was != "nixos-é.conf" || err != nil {
		t.Error(was, err)
	}
	if was, err := RemoveLoaderVar(dir, "LoaderEntryDefault"); was != "" || err != nil {
		t.Error("removed twice:", was, err)
	}
	if got, err := LoaderVar(dir, "LoaderEntrySelected"); got != "capsule-slot_a.conf" || err != nil {
		t.Error("the other variable:", got, err)
	}
	if was, err := RemoveLoaderVar(filepath.Join(dir, "no-efi"), "LoaderEntryDefault"); was != "" || err != nil {
		t.Error("a machine without EFI:", was, err)
	}
}

// A variable that can't be read is not one that isn't set: what hangs on it would be
// taken for decided.
func TestUnreadableLoaderVar(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "LoaderBootCountPath-"+loaderGUID), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := LoaderVar(dir, "LoaderBootCountPath"); err == nil || errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

func TestRemoveUnreadableLoaderVar(t *testing.T) {
	dir := t.TempDir()
	file := setVar(t, dir, "LoaderEntryDefault", "x")
	if err := os.WriteFile(file, []byte{1}, 0o600); err != nil {
		t.Fatal(err)
	}
	if was, err := RemoveLoaderVar(dir, "LoaderEntryDefault"); was == "" || err != nil {
		t.Error(was, err)
	}
	if _, err := LoaderVar(dir, "LoaderEntryDefault"); !errdefs.IsNotFound(err) {
		t.Error("still there:", err)
	}
}

// TestRemoveImmutableLoaderVar guards the file as efivarfs does.
func TestRemoveImmutableLoaderVar(t *testing.T) {
	dir := t.TempDir()
	file := setVar(t, dir, "LoaderEntryDefault", "x")
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutableFlag); err != nil {
		t.Skip("SKIPPED, needs root and a file system with immutable files:", err)
	}
	t.Cleanup(func() { _ = mutable(file) })
	if err := os.Remove(file); !errors.Is(err, unix.EPERM) {
		t.Fatalf("the file isn't guarded: %v", err)
	}
	if was, err := RemoveLoaderVar(dir, "LoaderEntryDefault"); was != "x" || err != nil {
		t.Error(was, err)
	}
}

func TestBootDevice(t *testing.T) {
	dir := t.TempDir()
	b := Boot{Slot: SlotA, SlotA: "/dev/vda2", SlotB: "/dev/vda3"}
	if err := b.Write(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Device(SlotB); got != "/dev/vda3" || err != nil {
		t.Error(got, err)
	}
	for _, slot := range []string{"", "slot_c"} {
		if _, err := b.Device(slot); !errdefs.IsNotFound(err) {
			t.Errorf("%q: %v", slot, err)
		}
	}
	if _, err := (Boot{}).Device(SlotA); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}
