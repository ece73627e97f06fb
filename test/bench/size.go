package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

const sizeMethod = "The bytes of each file; of the disk image also those that its sparse file takes."

func (b *bench) size(context.Context) error {
	head("File", "MiB")
	for _, f := range []struct{ label, pattern string }{
		{"root with verity", "build/root-*.erofs"},
		{"kernel, first stage and microcode (UKI)", "build/capsule-*.efi"},
		{"disk image", "build/capsule.img"},
		{"capsulectl", "bin/capsulectl"},
	} {
		info, err := b.stat(f.pattern)
		if err != nil {
			return err
		}
		row(fmt.Sprintf("%s, `%s`", f.label, f.pattern), fmt.Sprintf("%.1f", float64(info.Size())/mib))
		if st, ok := info.Sys().(*syscall.Stat_t); ok && f.pattern == "build/capsule.img" {
			row("the same, as a sparse file", fmt.Sprintf("%.1f", float64(st.Blocks*512)/mib))
		}
	}
	return nil
}

// stat looks at the one file of a pattern.
func (b *bench) stat(pattern string) (os.FileInfo, error) {
	paths, err := filepath.Glob(filepath.Join(b.repository, pattern))
	if err != nil {
		return nil, err
	}
	if len(paths) != 1 {
		return nil, fmt.Errorf("%d files %s; run make image build", len(paths), pattern)
	}
	return os.Stat(paths[0])
}
