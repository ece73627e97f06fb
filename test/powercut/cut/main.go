// Command cut makes the disk that a power cut left of a recording: the way from
// a failure that the power cut test told of to a disk that can be looked at, or
// booted by `capsulectl lab`.
//
//	go run ./test/powercut/cut -log writes.log -disk COPY-OF-base.img -mode drop -n 1234 -seed 5
package main

import (
	"flag"
	"fmt"
	"os"

	"capsule/internal/blocklog"
)

func main() {
	var c blocklog.Cut
	log := flag.String("log", "", "recording of the writes")
	disk := flag.String("disk", "", "copy of the disk as it was before, which is changed")
	mode := flag.String("mode", string(blocklog.Prefix), "prefix, drop or torn")
	flag.IntVar(&c.N, "n", 0, "number of log entries before the cut")
	flag.Uint64Var(&c.Seed, "seed", 0, "seed of the cut")
	flag.Parse()
	c.Mode = blocklog.Mode(*mode)
	if err := replay(*log, *disk, c); err != nil {
		fmt.Fprintln(os.Stderr, "error: cut:", err)
		os.Exit(1)
	}
}

func replay(log, disk string, c blocklog.Cut) error {
	in, err := os.Open(log)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	l, err := blocklog.Read(in, info.Size())
	if err != nil {
		return err
	}
	out, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := blocklog.Replay(l, blocklog.Disk{File: out}, c); err != nil {
		return err
	}
	return out.Sync()
}
