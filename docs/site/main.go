// Command site builds the manual as a static site with search: docs/*.md and
// docs/decisions/*.md become pages that are read from a disk as well as from a server.
// It fails on a link that leads nowhere. Nothing is loaded from elsewhere, and equal
// pages give equal bytes.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	root := flag.String("root", ".", "folder of the repository")
	out := flag.String("out", "build/docs", "folder to write the site to")
	flag.Parse()
	if err := run(*root, *out); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(root, out string) error {
	b, err := read(root)
	if err != nil {
		return err
	}
	if err := b.check(); err != nil {
		return err
	}
	if err := b.write(out); err != nil {
		return err
	}
	fmt.Printf("%d pages in %s; begin with %s/index.html\n", len(b.pages), out, out)
	return nil
}
