package lvm_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"capsule/internal/lvm"
)

// patience is how long a test waits for what must come.
const patience = 2 * time.Minute

func write(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func fillFile(file string, size int64) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for chunk := bytes.Repeat([]byte{0x5a}, mib); size > 0 && err == nil; size -= mib {
		_, err = f.Write(chunk)
	}
	return errors.Join(err, f.Sync())
}

// writer appends synced lines to a file until it is stopped; writes waits for so
// many more of them.
func writer(t *testing.T, file string) (writes func(n int), stop func() error) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	wrote, end, result := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(wrote)
		for i := 0; ; i++ {
			_, err := fmt.Fprintf(f, "line %d\n", i)
			if err = errors.Join(err, f.Sync()); err != nil {
				result <- errors.Join(err, f.Close())
				return
			}
			select {
			case wrote <- struct{}{}:
			case <-end:
				result <- f.Close()
				return
			default:
			}
		}
	}()
	writes = func(n int) {
		t.Helper()
		for range n {
			select {
			case <-wrote:
			case <-time.After(patience):
				t.Fatal("the writer hangs")
			}
		}
	}
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		close(end)
		return <-result
	}
	t.Cleanup(func() { _ = stop() })
	return writes, stop
}

// aligned is memory that O_DIRECT takes.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	at := 4096 - int(uintptr(unsafe.Pointer(&b[0]))&4095)
	return b[at : at+n : at+n]
}

// tryFill writes to a volume past all caches.
func tryFill(name string, at, size int64) error {
	f, err := os.OpenFile(lvm.Device(name), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	chunk := aligned(mib)
	for i := range chunk {
		chunk[i] = 0x5a
	}
	for end := at + size; at < end && err == nil; at += mib {
		_, err = f.WriteAt(chunk, at)
	}
	return errors.Join(err, f.Sync())
}

func fill(t *testing.T, name string, at, size int64) {
	t.Helper()
	if err := tryFill(name, at, size); err != nil {
		t.Fatal("write:", err)
	}
}

// A volume of so many bytes has about fifty leaves in its tree of chunks; a write
// to every one of them after a snapshot makes that many new blocks of metadata.
const (
	scattered   = 400 * mib
	scatterStep = 6 * mib
)

func tryScatter(name string) error {
	f, err := os.OpenFile(lvm.Device(name), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	chunk := aligned(64 << 10)
	for i := range chunk {
		chunk[i] = 0x5a
	}
	for at := int64(0); at < scattered && err == nil; at += scatterStep {
		_, err = f.WriteAt(chunk, at)
	}
	return errors.Join(err, f.Sync())
}

func scatter(t *testing.T, name string) {
	t.Helper()
	if err := tryScatter(name); err != nil {
		t.Fatal("write:", err)
	}
}

// compare reads what fill and scatter wrote.
func compare(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(lvm.Device(name), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk, want := aligned(mib), bytes.Repeat([]byte{0x5a}, mib)
	for at := int64(0); at < scattered; at += mib {
		if _, err := f.ReadAt(chunk, at); err != nil || !bytes.Equal(chunk, want) {
			t.Fatalf("byte %d of %q: %v", at, name, err)
		}
	}
}

func awaitEvent(t *testing.T, events <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-events:
	case <-time.After(patience):
		t.Errorf("no event: %s", what)
	}
}

func quiet(t *testing.T, events <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-events:
		t.Errorf("an event: %s", what)
	default:
	}
}
