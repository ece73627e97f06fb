//go:build machine

package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/rogpeppe/go-internal/testscript"

	"capsule/api/manifest"
	"capsule/internal/bundle"
	"capsule/test/machine/faults"
)

// builtVersion stands for the version of the built image, whose scripts don't know it.
const builtVersion = "image"

// quickPanic makes a panic restart the machine after 1 s, and not after 10.
const quickPanic = "panic=1"

// variants are the faults of a bundle that the image builder makes, as its flags.
// They cost seconds when another variant of the version has the same root, and about
// what mkfs.erofs takes when not. Others are copies: see [faults.Rewritings].
var variants = map[string][]string{
	"": nil,
	// The kernel finds no first program, and no root.
	"panic": {"-append", "rdinit=/absent " + quickPanic},
	// The first stage finds no root with this hash.
	"noroot": {"-append", quickPanic, "-root-hash", strings.Repeat("0", 64)},
	// See test/machine/faults/capsuled.
	"init-exits":    failing("init-exits"),
	"init-hangs":    failing("init-hangs"),
	"init-freezes":  failing("init-freezes"),
	"serve-exits":   failing("serve-exits"),
	"serve-hangs":   failing("serve-hangs"),
	"serve-freezes": failing("serve-freezes"),
	"serve-crashes": failing("serve-crashes"),
	"end-freezes":   failing("end-freezes"),
	// The uplink of a lab machine has no driver.
	"no-network-driver": {"-remove", "usr/lib/modules/*/kernel/drivers/net/virtio_net.ko*"},
	// Nothing is wrong but that the root is another.
	"other-content": failing("nowhere"),
}

// failing is a root whose capsuled has a fault that the kernel's command line names,
// so that all of them have one root.
func failing(fault string) []string {
	return []string{"-move", "usr/bin/capsuled=usr/bin/capsuled.real", "-overlay", "OVERLAY", "-append", "capsule.fault=" + fault + " " + quickPanic}
}

// made is what was made of bundles and programs in this run, each once.
var made sync.Map

// once makes a file once in a run, for all scripts.
func once(name string, make func(file string) error) (string, error) {
	file := filepath.Join(state, "bundles", name)
	f, _ := made.LoadOrStore(name, sync.OnceValue(func() error {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		return make(file)
	}))
	return file, f.(func() error)()
}

// makeBundle is the verb bundle FILE VERSION [FAULT]: makes FILE a link to a bundle of
// this version, with this fault. VERSION "image" is that of the built image; without
// a fault the bundle is what it was built from.
func makeBundle(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 2, "bundle FILE VERSION [FAULT]")
	fault := ""
	if len(args) > 2 {
		fault = args[2]
	}
	began := time.Now()
	file, err := bundleFile(args[1], fault)
	ts.Check(err)
	ts.Logf("bundle of %s %s after %.1f s", args[1], fault, time.Since(began).Seconds())
	link := ts.MkAbs(args[0])
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		ts.Check(err)
	}
	ts.Check(os.Symlink(file, link))
}

func bundleFile(version, fault string) (string, error) {
	name := strings.TrimSuffix(version+"-"+fault, "-") + ".bundle"
	if flags, ok := variants[fault]; ok {
		return once(name, func(file string) error { return buildVariant(file, version, flags) })
	}
	if !slices.Contains(faults.Rewritings(), fault) {
		return "", fmt.Errorf("no fault %q of a bundle", fault)
	}
	return once(name, func(file string) error {
		good, err := bundleFile(version, "")
		if err != nil {
			return err
		}
		key, err := bundle.LoadPrivateKey(filepath.Join(repository, "build/development.key"))
		if err != nil {
			return err
		}
		return faults.Rewrite(file, good, fault, key)
	})
}

// buildVariant runs the image builder on the finished build.
func buildVariant(file, version string, flags []string) error {
	builder, err := once("image-builder", func(file string) error { return goBuild(file, "./image") })
	if err != nil {
		return err
	}
	args := append([]string{"-variant", file}, flags...)
	if version != builtVersion {
		args = append(args, "-version", version)
	}
	for i, arg := range args {
		if arg != "OVERLAY" {
			continue
		}
		if args[i], err = overlay(); err != nil {
			return err
		}
	}
	cmd := exec.Command(builder, args...)
	cmd.Dir = repository
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build a bundle of %s %q: %w\n%s", version, flags, err, out)
	}
	return nil
}

// overlay is a tree with the capsuled that fails.
func overlay() (string, error) {
	return once("overlay", func(dir string) error {
		return goBuild(filepath.Join(dir, "usr/bin/capsuled"), "./test/machine/faults/capsuled")
	})
}

func goBuild(file, of string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", file, of)
	cmd.Dir, cmd.Env = repository, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", of, err, out)
	}
	return nil
}

// damageSlot is the verb damage NAME slot_a|slot_b [FILE]: changes one bit of the root
// in a slot of a stopped machine, in the middle of a file or else in the first block,
// which every start reads. A second time it is as it was.
func damageSlot(ts *testscript.TestScript, args []string) {
	name := ""
	if len(args) > 2 {
		name = args[2]
	}
	f := openDisk(ts, args[0])
	defer f.Close()
	start, _ := partition(ts, f, args[1])
	at, err := faults.InRoot(context.Background(), filepath.Join(repository, "build/work/debian"), f.Name(), start, name)
	ts.Check(err)
	ts.Check(faults.FlipBit(f, at))
}

// esp VERB NAME [ARGS…], on the boot partition of a stopped machine:
//
//	fill NAME BYTES-FREE [FILE]  leaves so much space (1MiB) by a file in its top folder,
//	                             FSCK0000.REC as a repair leaves it, or of another name
//	list NAME                    prints all files: size in bytes, path
//	put NAME PATH FILE           writes a file
//	remove NAME PATH             removes one; only one in the top folder gives up its space
func esp(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 2, "esp fill|list|put|remove NAME [ARGS...]")
	var err error
	verb, args := args[0], args[1:]
	f := openDisk(ts, args[0])
	defer f.Close()
	start, size := partition(ts, f, "ESP")
	if verb == "fill" {
		need(ts, args, 2, "esp fill NAME BYTES-FREE [FILE]")
		free := int64(0)
		if args[1] != "0" {
			free, err = manifest.ParseSize(args[1])
			ts.Check(err)
		}
		ts.Check(faults.FillFAT(f, start, append(args, "FSCK0000.REC")[2], free))
		return
	}
	volume, err := fat32.Read(file.New(f, false), size, start, 512)
	ts.Check(err)
	switch verb {
	case "list":
		ts.Check(listFAT(ts, volume, "."))
	case "put":
		need(ts, args, 3, "esp put NAME PATH FILE")
		ts.Check(putFAT(volume, onFAT(args[1]), []byte(ts.ReadFile(args[2]))))
	case "remove":
		need(ts, args, 2, "esp remove NAME PATH")
		if name := onFAT(args[1]); path.Dir(name) != "." {
			ts.Check(volume.Remove(name)) // what it held stays in use
		} else {
			ts.Check(faults.EmptyFAT(f, start, name))
		}
	default:
		ts.Fatalf("esp: no verb %q", verb)
	}
}

func listFAT(ts *testscript.TestScript, volume *fat32.FileSystem, dir string) error {
	entries, err := volume.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !e.IsDir() {
			fmt.Fprintf(ts.Stdout(), "%d /%s\n", info.Size(), name)
		} else if err := listFAT(ts, volume, name); err != nil {
			return err
		}
	}
	return nil
}

// onFAT is a path as go-diskfs wants it, with or without a slash in front.
func onFAT(name string) string { return strings.TrimPrefix(path.Clean(name), "/") }

func putFAT(volume *fat32.FileSystem, name string, content []byte) error {
	out, err := volume.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = out.Write(content)
	return errors.Join(err, out.Close())
}

// TestFaultsHaveOneMaker needs no machine.
func TestFaultsHaveOneMaker(t *testing.T) {
	for _, fault := range faults.Rewritings() {
		if _, ok := variants[fault]; ok {
			t.Errorf("%s is made twice", fault)
		}
	}
	if _, err := bundleFile("v9.0.0", "nothing"); err == nil {
		t.Error("an unknown fault was made")
	}
}
