package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"capsule/internal/qemu"
)

// firmwareMax bounds a machine's way to its kernel.
const firmwareMax = 5 * time.Minute

// firmware is the machine's time from its start to the kernel's first
// instruction: a debugger stops it there, and QEMU tells how many it has run.
func (b *bench) firmware(ctx context.Context, g emulated) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, firmwareMax)
	defer cancel()
	entry, err := kernelEntry(g.kernel)
	if err != nil {
		return 0, err
	}
	g.cmdline += " nokaslr" // so that the kernel runs where it was linked for
	g.machine = append([]string{"-S",
		"-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control",
		"-chardev", "socket,id=debugger,fd=4", "-gdb", "chardev:debugger"}, g.machine...)
	monitor, theirMonitor, err := socketPair()
	if err != nil {
		return 0, err
	}
	defer monitor.Close()
	debugger, theirDebugger, err := socketPair()
	if err != nil {
		return 0, errors.Join(err, theirMonitor.Close())
	}
	defer debugger.Close()
	cmd := b.emulate(ctx, g)
	cmd.ExtraFiles = []*os.File{theirMonitor, theirDebugger}
	err = cmd.Start()
	if err = errors.Join(err, theirMonitor.Close(), theirDebugger.Close()); err != nil {
		return 0, err
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // killed
	}()
	if err := runTo(ctx, debugger, entry); err != nil {
		return 0, fmt.Errorf("stop guest %q at its kernel: %w", g.name, err)
	}
	return instructions(ctx, monitor)
}

// instructions that the machine has run, each of which takes a nanosecond.
func instructions(ctx context.Context, conn net.Conn) (time.Duration, error) {
	m, err := qemu.NewMonitor(ctx, conn)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	var replay struct {
		ICount int64 `json:"icount"`
	}
	err = m.Do(ctx, "query-replay", nil, &replay)
	return time.Duration(replay.ICount), err
}

// runTo lets the machine run to an address, by gdb's protocol:
// https://sourceware.org/gdb/current/onlinedocs/gdb.html/Remote-Protocol.html
func runTo(ctx context.Context, conn net.Conn, address uint64) error {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	in := bufio.NewReader(conn)
	for _, step := range []struct{ command, answer string }{{fmt.Sprintf("Z1,%x,1", address), "OK"}, {"c", "T05"}} {
		if err := sendPacket(conn, step.command); err != nil {
			return err
		}
		answer, err := readPacket(in)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(answer, step.answer) {
			return fmt.Errorf("QEMU's debugger answers %q to %q", answer, step.command)
		}
		if _, err := conn.Write([]byte("+")); err != nil {
			return err
		}
	}
	return nil
}

func sendPacket(conn net.Conn, text string) error {
	_, err := fmt.Fprintf(conn, "$%s#%02x", text, checksum(text))
	return err
}

func checksum(text string) (sum byte) {
	for _, c := range []byte(text) {
		sum += c
	}
	return sum
}

// readPacket passes over the acknowledgement before the packet.
func readPacket(in *bufio.Reader) (string, error) {
	if _, err := in.ReadString('$'); err != nil {
		return "", err
	}
	text, err := in.ReadString('#')
	if err != nil {
		return "", err
	}
	_, err = in.Discard(2)
	return strings.TrimSuffix(text, "#"), err
}

// socketPair gives our end, and the one for a program.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return conn, theirs, nil
}

// Places in a bzImage and in an ELF file:
// https://docs.kernel.org/arch/x86/boot.html
const (
	setupSectors  = 0x1f1
	bootMagic     = 0x202
	payloadOffset = 0x248
	payloadLength = 0x24c
	sectorBytes   = 512

	elfEntry       = 24
	elfHeaderBytes = 64
)

// kernelEntry is the address of the first instruction of a kernel that is an ELF
// file, or one that was compressed with zstd.
func kernelEntry(path string) (uint64, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	entry, err := entryOf(file)
	if err != nil {
		return 0, fmt.Errorf("kernel %s: %w", path, err)
	}
	return entry, nil
}

func entryOf(file []byte) (uint64, error) {
	header := file
	if len(file) > payloadLength+4 && string(file[bootMagic:bootMagic+4]) == "HdrS" {
		from := (int(file[setupSectors])+1)*sectorBytes + int(binary.LittleEndian.Uint32(file[payloadOffset:]))
		to := from + int(binary.LittleEndian.Uint32(file[payloadLength:]))
		if to > len(file) {
			return 0, errors.New("it was cut off")
		}
		d, err := zstd.NewReader(bytes.NewReader(file[from:to]), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return 0, err
		}
		defer d.Close()
		header = make([]byte, elfHeaderBytes)
		if _, err := d.Read(header); err != nil {
			return 0, fmt.Errorf("it is not compressed with zstd: %w", err)
		}
	}
	if len(header) < elfHeaderBytes || !bytes.HasPrefix(header, []byte("\x7fELF")) {
		return 0, errors.New("it is neither an ELF file nor a bzImage")
	}
	return binary.LittleEndian.Uint64(header[elfEntry:]), nil
}
