package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

const guestMethod = `Seconds of the machine's own time since QEMU let its processor run, one processor, the capsule's QEMU with
` + "`-icount shift=0`" + `, as under Boot. Beside the microVM's guest a Debian with its kernel for clouds, systemd and sshd,
and nothing else to start: no network, no cloud-init, no boot loader. Firmware is all before the kernel's first
instruction, its decompression included; initramfs is its unpacking and, in Debian, what its scripts do until
systemd runs; the last part ends when the agent serves, or sshd.`

// repeats of a start: a guest waits for its disk, and that for this computer.
const repeats = 3

// guest measures the start of a microVM's guest, and of another one.
func (b *bench) guest(ctx context.Context) error {
	d, err := b.debian(ctx, debianGuest)
	if err != nil {
		return err
	}
	ours, err := b.ourGuest(ctx)
	if err != nil {
		return err
	}
	pc, err := b.startDebian(ctx, d, debianPC)
	if err != nil {
		return err
	}
	micro, err := b.startDebian(ctx, d, debianMicro)
	if err != nil {
		return err
	}
	head("Guest", "firmware", "kernel", "initramfs", "agent, or systemd and sshd", "**answers**", "microVM's share")
	for _, g := range []guestStart{ours, micro, pc} {
		row(g.name, seconds3(g.firmware), seconds3(g.kernel), seconds3(g.initramfs), seconds3(g.rest), seconds3(g.total()),
			fmt.Sprintf("%.2f", ours.total().Seconds()/g.total().Seconds()))
	}
	return nil
}

// guestStart is one row.
type guestStart struct {
	name                              string
	firmware, kernel, initramfs, rest time.Duration
}

func (g guestStart) total() time.Duration { return g.firmware + g.kernel + g.initramfs + g.rest }

func seconds3(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }

// moments reads from a console, in the time of programs, when what is in the
// initramfs is done, and when the guest answers.
type moments func(console string) (initramfs, answers time.Duration, err error)

// startGuest starts a guest some times until its QEMU ends, and gives the start
// in the middle.
func (b *bench) startGuest(ctx context.Context, g emulated, watch func(line string) error, moments moments) (guestStart, error) {
	s := guestStart{name: g.name}
	g, err := b.withClock(ctx, g)
	if err != nil {
		return s, err
	}
	if s.firmware, err = b.firmware(ctx, g); err != nil {
		return s, err
	}
	unpack, err := b.unpacking(ctx, g)
	if err != nil {
		return s, err
	}
	var answered [repeats]guestStart
	for i := range answered {
		if answered[i], err = b.oneStart(ctx, g, s.firmware, unpack, watch, moments); err != nil {
			return s, fmt.Errorf("guest %q: %w", g.name, err)
		}
	}
	slices.SortFunc(answered[:], func(x, y guestStart) int { return cmp.Compare(x.total(), y.total()) })
	return answered[repeats/2], nil
}

// oneStart is a start of which the parts are known that are always the same.
func (b *bench) oneStart(ctx context.Context, g emulated, firmware, unpack time.Duration, watch func(string) error, moments moments) (guestStart, error) {
	s := guestStart{name: g.name, firmware: firmware}
	text, err := b.run(ctx, g, watch)
	if err != nil {
		return s, err
	}
	c, err := parseClocks(text)
	if err != nil {
		return s, fmt.Errorf("%w; its console:\n%s", err, text)
	}
	initramfs, answers, err := moments(text)
	if err != nil {
		return s, fmt.Errorf("%w; its console:\n%s", err, text)
	}
	s.kernel = c.machine - firmware - unpack
	s.initramfs = unpack + max(0, initramfs-c.uptime)
	s.rest = c.ofUptime(answers) - s.total()
	return s, nil
}
