package ext4

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// blank is a file of zeros to make a file system in, with the programs on the path
// wherever the test runs.
func blank(t *testing.T, size int64) string {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs e2fsprogs")
	}
	file := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	return file
}

func formatted(t *testing.T, size int64) string {
	t.Helper()
	file := blank(t, size)
	if err := Format(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	return file
}

func edit(t *testing.T, file string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func TestFormat(t *testing.T) {
	for _, size := range []int64{32 * mib, 33 * mib, 1 << 30, 40 << 30} {
		file := formatted(t, size)
		got, err := ReadSuper(file)
		if diff := cmp.Diff(Super{SizeBytes: size, BlockBytes: 4096}, got); err != nil || diff != "" {
			t.Error(size, err, diff)
		}
		if err := Check(t.Context(), file); err != nil {
			t.Error(size, err)
		}
		// What is written is space of the pool for ever.
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil || st.Blocks*512 > 1*mib+size/4096 {
			t.Errorf("%d MiB: %d KiB written, %v", size/mib, st.Blocks/2, err)
		}
	}
}

// What might be data is never written over, whatever it is.
func TestFormatRefuses(t *testing.T) {
	for name, at := range map[string]int64{"first byte": 0, "superblock": 1024 + 0x38, "end of the head": emptyLen - 1} {
		file := blank(t, 32*mib)
		edit(t, file, at, []byte{1})
		if err := Format(t.Context(), file); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := ReadSuper(file); err == nil {
			t.Errorf("%s: formatted", name)
		}
	}
	file := formatted(t, 32*mib)
	if err := Format(t.Context(), file); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a file system: %v", err)
	}
	if err := Format(t.Context(), file+"-none"); err == nil {
		t.Error("made a file where no device is")
	}
}

// Cut while it grows, a superblock may have the counts of before; the journal has
// those of after, and the backup too. Counts that don't fit each other are damage.
func TestMendWhileGrowing(t *testing.T) {
	for inodes, want := range map[uint32]bool{1: true, 2: false, 0: false} {
		file := formatted(t, 192<<20)
		b := make([]byte, superLen)
		f, err := os.Open(file)
		if err == nil {
			_, err = f.ReadAt(b, superAt)
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		le := binary.LittleEndian
		le.PutUint32(b[0x00:], inodes*le.Uint32(b[0x28:])) // of so many groups
		le.PutUint32(b[0x04:], le.Uint32(b[0x20:]))        // the blocks of one
		edit(t, file, superAt, b[:512])
		if mended, err := mend(file); mended != want || (err == nil) != want {
			t.Errorf("inodes of %d groups: mended %v, %v", inodes, mended, err)
		}
	}
}

func TestCheck(t *testing.T) {
	const small, large = 32 * mib, 256 * mib // without and with a backup of the superblock
	superblock := func(at int64, b ...byte) func(*testing.T, string) {
		return func(t *testing.T, file string) { edit(t, file, superAt+at, b) }
	}
	later := make([]byte, 8) // mount time and write time
	for i := range later {
		later[i] = 0x55
	}
	for name, tc := range map[string]struct {
		size int64
		harm func(t *testing.T, file string)
		want func(error) bool
		says string
	}{
		"clean":                             {small, func(*testing.T, string) {}, isNil, ""},
		"errors, no damage":                 {small, markErrors, isNil, ""},
		"no superblock":                     {small, superblock(0, make([]byte, superLen)...), errdefs.IsDataLoss, "no ext4"},
		"torn superblock":                   {large, superblock(0x2c, later...), isNil, ""},
		"torn, other half":                  {large, superblock(checksumAt, 1, 2, 3, 4), isNil, ""},
		"torn, no backup":                   {small, superblock(0x2c, later...), isNil, ""},
		"torn, no backup of it, other half": {small, superblock(checksumAt, 1, 2, 3, 4), isNil, ""},
		"no backup, of another": {small, func(t *testing.T, file string) { // its identity, and the seed that newer ones keep
			superblock(0x68, 1, 2, 3, 4)(t, file)
			superblock(0x270, 1, 2, 3, 4)(t, file)
		}, errdefs.IsDataLoss, "no backup"},
		"no backup, less inodes": {small, superblock(0x0, 1, 2), errdefs.IsDataLoss, "no backup"},
		"superblock of another":  {large, superblock(0x68, 1, 2, 3, 4), errdefs.IsDataLoss, "backup differs"},
		"superblock says 1 TiB":  {large, superblock(0x4, 0, 0, 0, 16), errdefs.IsDataLoss, "backup differs"},
		"torn, its backup as well": {large, func(t *testing.T, file string) {
			edit(t, file, superAt+0x2c, later)
			edit(t, file, 128*mib+0x2c, later)
		}, errdefs.IsDataLoss, "backup differs"},
		"no inodes":           {small, wipeInodes, errdefs.IsDataLoss, "a person"},
		"no group descriptor": {small, func(t *testing.T, file string) { edit(t, file, 4096, make([]byte, 4096)) }, errdefs.IsDataLoss, ""},
		"nothing there":       {small, func(t *testing.T, file string) { _ = os.Remove(file) }, errdefs.IsNotFound, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			file := formatted(t, tc.size)
			tc.harm(t, file)
			err := Check(t.Context(), file)
			t.Log(err)
			if !tc.want(err) || tc.says != "" && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v", err)
			}
			if err == nil {
				if s, err := ReadSuper(file); err != nil || s.Errors || s.NeedsRecovery {
					t.Error("after the check:", s, err)
				}
			}
		})
	}
}

func isNil(err error) bool { return err == nil }

// markErrors does what the kernel does when it meets damage.
func markErrors(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b = b[superAt : superAt+superLen]
	b[0x3a] |= stateErrors
	binary.LittleEndian.PutUint32(b[checksumAt:], checksum(b))
	edit(t, file, superAt, b)
}

// wipeInodes overwrites the first group's inode table with rubbish: the root folder
// is gone.
func wipeInodes(t *testing.T, file string) {
	t.Helper()
	b := make([]byte, 64)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(b, 4096); err != nil {
		t.Fatal(err)
	}
	table := int64(binary.LittleEndian.Uint32(b[8:]))
	rubbish := make([]byte, 4096)
	for i := range rubbish {
		rubbish[i] = 0xa5
	}
	edit(t, file, table*4096, rubbish)
}

func TestCheckEndsWithItsCaller(t *testing.T) {
	file := formatted(t, 32*mib)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Check(ctx, file); err == nil || errdefs.IsDataLoss(err) {
		t.Errorf("a caller that gave up: %v", err)
	}
}

func TestParseSuper(t *testing.T) {
	le := binary.LittleEndian
	b := make([]byte, superLen)
	le.PutUint32(b[0x4:], 1000)
	le.PutUint32(b[0x18:], 2)
	le.PutUint16(b[0x38:], magic)
	if got, err := parseSuper(b); err != nil || got != (Super{SizeBytes: 4096000, BlockBytes: 4096}) {
		t.Error(got, err)
	}
	le.PutUint32(b[0x60:], incompat64bit|incompatRecover)
	le.PutUint32(b[0x150:], 1)
	le.PutUint16(b[0x3a:], stateErrors)
	le.PutUint32(b[0x64:], rocompatProject)
	if got, err := parseSuper(b); err != nil || got != (Super{SizeBytes: (1<<32 + 1000) * 4096, BlockBytes: 4096, Errors: true, NeedsRecovery: true}) {
		t.Error(got, err)
	}
	le.PutUint32(b[0x64:], rocompatProject|rocompatQuota)
	if got, err := parseSuper(b); err != nil || !got.Projects {
		t.Error(got, err)
	}
	for name, harm := range map[string]func(b []byte) []byte{
		"too large": func(b []byte) []byte { le.PutUint32(b[0x150:], 1<<31); return b },
		"no blocks": func(b []byte) []byte { le.PutUint32(b[0x150:], 0); le.PutUint32(b[0x4:], 0); return b },
		"odd block": func(b []byte) []byte { le.PutUint32(b[0x18:], 7); return b },
		"no magic":  func(b []byte) []byte { b[0x38] = 0; return b },
		"cut off":   func(b []byte) []byte { return b[:100] },
	} {
		if got, err := parseSuper(harm(bytes.Clone(b))); !errdefs.IsDataLoss(err) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// Whatever stands there, only a superblock with a like backup is taken.
func FuzzSameShape(f *testing.F) {
	b := make([]byte, superLen)
	binary.LittleEndian.PutUint16(b[0x38:], magic)
	f.Add(b, b)
	f.Fuzz(func(t *testing.T, b, backup []byte) {
		if len(b) == superLen && sameShape(bytes.NewReader(backup), int64(len(backup)), b) == nil && binary.LittleEndian.Uint16(b[0x38:]) != magic {
			t.Error("no superblock was taken")
		}
	})
}

func FuzzParseSuper(f *testing.F) {
	b := make([]byte, superLen)
	binary.LittleEndian.PutUint16(b[0x38:], magic)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseSuper(b); err == nil && (s.SizeBytes <= 0 || s.BlockBytes < 1024 || s.SizeBytes%s.BlockBytes != 0) {
			t.Errorf("%+v", s)
		}
	})
}
