package main

import (
	"os"
	"path/filepath"
	"testing"
)

// The image holds a file once that is in both trees, and a small command never hides
// the program of that name.
func TestDebugTreeShares(t *testing.T) {
	root := writeTree(t, map[string]string{"root/usr/sbin/lvm": "lvm", "debian/usr/sbin/lvm": "lvm", "debian/usr/bin/strace": "strace"})
	for _, name := range []string{"usr/sbin/lvm", "usr/bin/strace"} {
		err := shareEntry(filepath.Join(root, "root", name), filepath.Join(root, "debian", name), filepath.Join(root, "debug", name))
		if err != nil {
			t.Fatal(err)
		}
	}
	same := func(x, y string) bool {
		a, err1 := os.Stat(filepath.Join(root, x))
		b, err2 := os.Stat(filepath.Join(root, y))
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		return os.SameFile(a, b)
	}
	if !same("root/usr/sbin/lvm", "debug/usr/sbin/lvm") || same("debian/usr/bin/strace", "debug/usr/bin/strace") {
		t.Error("lvm is there twice, or strace is no copy")
	}
}

func TestBusyboxHidesNothing(t *testing.T) {
	dir := writeTree(t, map[string]string{"usr/sbin/nft": "nft", "usr/bin/busybox": "busybox"})
	if err := linkCommands(dir, []string{"sh", "nft", "[[", "../out", "busybox"}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"usr/bin/sh": true, "usr/bin/[[": true, "usr/bin/nft": false, "usr/out": false} {
		target, err := os.Readlink(filepath.Join(dir, name))
		if (err == nil) != want || want && target != "busybox" {
			t.Errorf("%s leads to %q, %v", name, target, err)
		}
	}
	if linkCommands(dir, nil) == nil {
		t.Error("a busybox without commands is taken")
	}
}
