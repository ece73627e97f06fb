// Command image builds everything that a capsule boots from: the read-only root
// with its dm-verity tree, the unified kernel image, the disk image, the update bundle,
// and the list of all that went in. It takes Debian packages from the mirrors in this machine's
// own apt configuration and Go programs from the modules pinned in go.mod.
//
// Every stage is a step with a key made from its inputs: a step whose key did not
// change since its last run is skipped. Nothing here runs on a capsule.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// command parses the arguments and runs the build, or one of its checks.
func command(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	out := flags.String("out", "build", "folder for everything that is built")
	seed := flags.String("seed", "", "PEM file that is put on the ESP as the capsule's first identity: a CA, its key, and the certificates of its operators")
	owner := flags.String("owner", "", "certificate request (capsulectl access request) of whom the image belongs to; makes a seed and a grant for it")
	update := flags.Bool("update", false, "ask the mirrors for newer packages instead of using the versions of the last build")
	again := flags.Bool("check-reproducible", false, "build the root a second time elsewhere and compare it with the first")
	bundled := flags.Bool("bundle", false, "build the update bundle too")
	release := flags.Bool("release", false, "trust no development key: only the keys of image/keys sign updates")
	key := flags.String("key", "", "key file that signs the bundle (default the development key; a release stays unsigned)")
	mirror := flags.String("mirror", os.Getenv("CAPSULE_MIRROR"), "Debian mirror to use when apt is not configured for one")
	v := variantFlags(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	repo, err := os.Getwd()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(repo, "image", "lists")); err != nil {
		return fmt.Errorf("run this from the top of the source tree: %w", err)
	}
	b, err := newBuilder(ctx, repo, *out)
	if err != nil {
		return err
	}
	b.update, b.mirror, b.seed = *update, *mirror, *seed
	b.bundle, b.release, b.signWith = *bundled, *release, *key
	if err := b.ownedBy(*owner); err != nil {
		return err
	}
	if v.file != "" {
		return b.buildVariant(v)
	}
	unlock, err := b.exclusive()
	if err != nil {
		return err
	}
	defer unlock()
	if *again {
		return b.checkReproducible()
	}
	return b.build()
}
