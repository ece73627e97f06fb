package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// printWords prints its arguments as one line.
func printWords(args []string) int {
	fmt.Println(strings.Join(args, " "))
	return 0
}

func printErr(args []string) int {
	fmt.Fprintln(os.Stderr, strings.Join(args, " "))
	return 0
}

// printBytes N [CHAR] prints N bytes without a newline.
func printBytes(args []string) int {
	n, err := strconv.ParseInt(argument(args, 0, "1"), 10, 64)
	if err != nil {
		return fail(err)
	}
	char := argument(args, 1, "x")[0]
	if _, err := io.CopyN(os.Stdout, repeated(char), n); err != nil {
		return fail(err)
	}
	return 0
}

type repeated byte

func (r repeated) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r)
	}
	return len(p), nil
}

// lines N [WORD] prints N numbered lines as fast as it can.
func lines(args []string) int {
	n, err := strconv.Atoi(argument(args, 0, "1"))
	if err != nil {
		return fail(err)
	}
	word := argument(args, 1, "line")
	for i := range n {
		if _, err := fmt.Printf("%s %d\n", word, i); err != nil {
			return fail(err)
		}
	}
	return 0
}

// tick EVERY [N] prints a numbered line each so often, for ever without N.
func tick(args []string) int {
	every, err := time.ParseDuration(argument(args, 0, "1s"))
	if err != nil {
		return fail(err)
	}
	n, _ := strconv.Atoi(argument(args, 1, "0"))
	for i := 0; n == 0 || i < n; i++ {
		fmt.Println("tick", i)
		time.Sleep(every)
	}
	return 0
}

// cat prints files, or stdin without any.
func cat(args []string) int {
	if len(args) == 0 {
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			return fail(err)
		}
	}
	for _, name := range args {
		f, err := os.Open(name)
		if err != nil {
			return fail(err)
		}
		_, err = io.Copy(os.Stdout, f)
		f.Close()
		if err != nil {
			return fail(err)
		}
	}
	return 0
}

// sum prints the SHA-256 and size of files, of stdin without any.
func sum(args []string) int {
	if len(args) == 0 {
		args = []string{"/proc/self/fd/0"}
	}
	for _, name := range args {
		f, err := os.Open(name)
		if err != nil {
			return fail(err)
		}
		hash := sha256.New()
		n, err := io.Copy(hash, f)
		f.Close()
		if err != nil {
			return fail(err)
		}
		fmt.Printf("%x %d\n", hash.Sum(nil), n)
	}
	return 0
}

// write FILE WORDS… writes a line to a file and syncs it.
func write(args []string) int {
	if len(args) < 1 {
		return fail(os.ErrInvalid)
	}
	f, err := os.Create(args[0])
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, strings.Join(args[1:], " ")); err != nil {
		return fail(err)
	}
	if err := f.Sync(); err != nil {
		return fail(err)
	}
	return 0
}

// df prints the bytes of file systems by a path in each, without what they need
// themselves.
func df(args []string) int {
	for _, name := range args {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(name, &fs); err != nil {
			return fail(err)
		}
		fmt.Println(fs.Blocks * uint64(fs.Bsize))
	}
	return 0
}

// keep FILE appends numbered lines for ever, and prints each once it is synced.
func keep(args []string) int {
	if len(args) < 1 {
		return fail(os.ErrInvalid)
	}
	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	for i := 0; ; i++ {
		_, err := fmt.Fprintf(f, "%d\n", i)
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			return fail(err)
		}
		fmt.Println("kept", i)
	}
}

// fill FILE MIB [late] writes that many MiB, each of other bytes, and syncs each; late
// leaves that to the kernel.
func fill(args []string) int {
	if len(args) < 2 {
		return fail(os.ErrInvalid)
	}
	mebibytes, err := strconv.Atoi(args[1])
	if err != nil {
		return fail(err)
	}
	f, err := os.Create(args[0])
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for n := range mebibytes {
		for i := range block {
			block[i] = byte(n + i>>8 + 1)
		}
		if _, err := f.Write(block); err != nil {
			return fail(err)
		}
		if argument(args, 2, "") == "late" {
			continue
		}
		if err := f.Sync(); err != nil {
			return fail(err)
		}
	}
	return 0
}

// cold FILE reads a file from its disk, whatever of it is in memory, and prints its
// bytes.
func cold(args []string) int {
	f, err := os.Open(argument(args, 0, ""))
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	err = f.Sync()
	if err == nil {
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	var n int64
	if err == nil {
		n, err = io.Copy(io.Discard, f)
	}
	if err != nil {
		return fail(err)
	}
	fmt.Println("read", n)
	return 0
}

func mkdir(args []string) int {
	for _, name := range args {
		if err := os.MkdirAll(name, 0o755); err != nil {
			return fail(err)
		}
	}
	return 0
}

func rm(args []string) int {
	for _, name := range args {
		if err := os.RemoveAll(name); err != nil {
			return fail(err)
		}
	}
	return 0
}

// ls prints the paths below a folder, all of them when told "-r".
func ls(args []string) int {
	deep := argument(args, 0, "") == "-r"
	if deep {
		args = args[1:]
	}
	root := argument(args, 0, ".")
	err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == root {
			return nil
		}
		name, err := filepath.Rel(root, path)
		fmt.Println(name)
		if err == nil && entry.IsDir() && !deep {
			err = filepath.SkipDir
		}
		return err
	})
	if err != nil {
		return fail(err)
	}
	return 0
}

// stat prints "MODE UID:GID SIZE [-> TARGET]" of files.
func stat(args []string) int {
	for _, name := range args {
		info, err := os.Lstat(name)
		if err != nil {
			return fail(err)
		}
		sys := info.Sys().(*syscall.Stat_t)
		fmt.Printf("%v %d:%d %d", info.Mode(), sys.Uid, sys.Gid, info.Size())
		if target, err := os.Readlink(name); err == nil {
			fmt.Print(" -> ", target)
		}
		fmt.Println()
	}
	return 0
}
