package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestVirtualizationIsProbedOncePerBoot(t *testing.T) {
	dir := t.TempDir()
	result, probes := errors.New("open /dev/kvm: no such file or directory"), 0
	p := prober{
		program: filepath.Join(dir, "qemu"), file: filepath.Join(dir, "run", "virtualization"),
		probe: func(context.Context, string) error { probes++; return result },
	}
	if got := p.find(t.Context()); got != "" || probes != 0 {
		t.Errorf("without QEMU: %q, %d probes", got, probes)
	}
	if err := os.WriteFile(p.program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	const emulated = "emulated: open /dev/kvm: no such file or directory"
	for range 2 { // the second is another daemon of the same boot
		if got := p.find(t.Context()); got != emulated || probes != 1 {
			t.Errorf("got %q after %d probes", got, probes)
		}
		result = nil
	}
	if err := os.Remove(p.file); err != nil { // another boot
		t.Fatal(err)
	}
	if got := p.find(t.Context()); got != "kvm" || probes != 2 {
		t.Errorf("got %q after %d probes", got, probes)
	}
}
