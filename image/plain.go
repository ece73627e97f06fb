package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/ulikunitz/xz"
)

// moduleMax bounds one unpacked module.
const moduleMax = 64 << 20

// plainName is a module's file without the suffix of its compression.
func plainName(module string) string { return strings.TrimSuffix(module, ".xz") }

// modules is where the unpacked modules lie.
func (b *builder) modules() string { return filepath.Join(b.work, "modules") }

// plainModules unpacks the modules that nearly every start loads. In the packages
// each is packed with xz, which takes the kernel some five times as long to unpack
// as the zstd of root and initrd. The drivers for other machines stay packed: all
// of them would make the root 10 MiB larger.
func (b *builder) plainModules() error {
	patterns := append(list("modules-plain"), list("initrd-modules")...)
	return b.step("modules", newKey("modules 2", b.lock, patterns), []string{b.modules()}, func() error {
		graph, err := b.moduleGraph()
		if err != nil {
			return err
		}
		chosen, err := graph.closure(patterns)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(b.modules()); err != nil {
			return err
		}
		return b.unpackModules(chosen)
	})
}

// unpackModules unpacks as many at a time as there are processors.
func (b *builder) unpackModules(modules []string) error {
	var group sync.WaitGroup
	errs := make([]error, len(modules))
	slots := make(chan struct{}, runtime.NumCPU())
	for i, module := range modules {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			from := b.debian("usr/lib/modules/" + b.kernel + "/" + module)
			errs[i] = unpackModule(from, filepath.Join(b.modules(), plainName(module)))
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

func unpackModule(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	var r io.Reader = f
	if plainName(from) != from {
		if r, err = xz.NewReader(f); err != nil {
			return fmt.Errorf("unpack %s: %w", from, err)
		}
	}
	content, err := io.ReadAll(io.LimitReader(r, moduleMax+1))
	if err == nil && len(content) > moduleMax {
		err = fmt.Errorf("more than %d bytes", moduleMax)
	}
	if err != nil {
		return fmt.Errorf("unpack %s: %w", from, err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o644)
}

// copyModule copies a module into the tree of all modules, unpacked if it is one of
// the plain ones.
func (b *builder) copyModule(module, to string) error {
	plain := plainName(module)
	err := copyFile(filepath.Join(b.modules(), plain), filepath.Join(to, plain), 0o644)
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return copyFile(b.debian("usr/lib/modules/"+b.kernel+"/"+module), filepath.Join(to, module), 0o644)
}
