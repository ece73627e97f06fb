package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"capsule/internal/qemu"
)

const (
	qemuProgram        = "/usr/bin/qemu-system-x86_64"
	virtualizationFile = "/run/capsule/virtualization"
	onKVM              = "kvm"
	emulatedFor        = "emulated: " // the reason follows
)

// prober finds out what microVMs run on, once per boot: a daemon that is started
// again must not judge otherwise than the one whose microVMs it takes over.
type prober struct {
	program, file string
	probe         func(ctx context.Context, program string) error
}

var virtualization = prober{qemuProgram, virtualizationFile, qemu.Probe}

// possible tells whether there is a QEMU.
func (p prober) possible() bool {
	_, err := os.Stat(p.program)
	return err == nil
}

// find gives it in the words of InfoResponse; "" where there is no QEMU.
func (p prober) find(ctx context.Context) string {
	if !p.possible() {
		return ""
	}
	if known := readText(p.file); known != "" {
		return known
	}
	text := onKVM
	if err := p.probe(ctx, p.program); err != nil {
		text = emulatedFor + err.Error()
		slog.Warn("microVMs run without hardware virtualization: slow", "reason", err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(p.file), 0o755), os.WriteFile(p.file, []byte(text), 0o644)); err != nil {
		slog.Error("keep what microVMs run on", "error", err)
	}
	return text
}
