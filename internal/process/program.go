package process

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Problem is why a program can't be run, with the exit code that tells it.
type Problem struct {
	Code int // 126 or 127
	Text string
}

func (p *Problem) Error() string { return p.Text }

// Is makes it an invalid argument.
func (p *Problem) Is(target error) bool { return target == errdefs.ErrInvalidArgument }

// Exit codes that a shell gives for what has none of its own.
const (
	CannotRun = 126
	NotFound  = 127
	Killed    = 128 + 9 // by SIGKILL, or lost: power cut, crash, or whatever held it that died
)

// Program checks that an account can run the program name, which is looked up
// in search ("/bin:/usr/bin") unless it holds a slash.
func (r FS) Program(name, search, cwd string, who Account) error {
	if name == "" {
		return &Problem{NotFound, "no program was named"}
	}
	if strings.Contains(name, "/") {
		if !path.IsAbs(name) {
			name = path.Join(cwd, name)
		}
		return r.executable(name, who, 0)
	}
	var worst error = &Problem{NotFound, fmt.Sprintf("no program %q in %s", name, search)}
	for dir := range strings.SplitSeq(search, ":") {
		if !path.IsAbs(dir) {
			dir = path.Join(cwd, dir)
		}
		err := r.executable(path.Join(dir, name), who, 0)
		if err == nil {
			return nil
		}
		if p := (*Problem)(nil); !errors.As(err, &p) {
			return err
		} else if p.Code == CannotRun {
			worst = err
		}
	}
	return worst
}

// scriptDepth is how many interpreters may stand in a row, as in the kernel.
const scriptDepth = 5

func (r FS) executable(name string, who Account, depth int) error {
	f, err := r.Open(name, unix.O_PATH, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return &Problem{NotFound, fmt.Sprintf("no such program: %q", name)}
	case errors.Is(err, unix.ELOOP):
		return &Problem{CannotRun, fmt.Sprintf("%q is a link in a circle", name)}
	case err != nil:
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	switch {
	case st.IsDir():
		return &Problem{CannotRun, fmt.Sprintf("%q is a folder", name)}
	case !st.Mode().IsRegular():
		return &Problem{CannotRun, fmt.Sprintf("%q is no regular file", name)}
	case !who.mayRun(st):
		return &Problem{CannotRun, fmt.Sprintf("%q is not executable for %s", name, who)}
	}
	return r.format(name, who, depth)
}

// format checks what the kernel needs to start the file: an interpreter that is
// there, or our processor.
func (r FS) format(name string, who Account, depth int) error {
	f, err := r.Open(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 256) // BINPRM_BUF_SIZE
	n, _ := f.ReadAt(head, 0)
	head = head[:n]
	if script, ok := bytes.CutPrefix(head, []byte("#!")); ok {
		line, _, _ := bytes.Cut(script, []byte("\n"))
		fields := strings.Fields(string(line))
		if len(fields) == 0 || depth >= scriptDepth {
			return &Problem{CannotRun, fmt.Sprintf("script %q has no interpreter", name)}
		}
		err := r.executable(path.Join("/", fields[0]), who, depth+1)
		if p := (*Problem)(nil); errors.As(err, &p) {
			return &Problem{p.Code, fmt.Sprintf("interpreter of script %q: %s", name, p.Text)}
		}
		return err
	}
	if !bytes.HasPrefix(head, []byte(elf.ELFMAG)) || len(head) < 20 {
		return &Problem{CannotRun, fmt.Sprintf("%q is no program for this machine", name)}
	}
	if machine := elf.Machine(uint16(head[18]) | uint16(head[19])<<8); !runs(machine) {
		return &Problem{CannotRun, fmt.Sprintf("%q is for another processor (%s)", name, machine)}
	}
	return nil
}

// runs tells whether programs for the machine run here.
func runs(m elf.Machine) bool {
	switch runtime.GOARCH {
	case "amd64":
		return m == elf.EM_X86_64 || m == elf.EM_386
	case "arm64":
		return m == elf.EM_AARCH64 || m == elf.EM_ARM
	}
	return true
}

// mayRun tells whether the account has a right to execute the file.
func (a Account) mayRun(st os.FileInfo) bool {
	mode := st.Mode().Perm()
	sys, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !ok || a.UID == 0:
		return mode&0o111 != 0
	case sys.Uid == a.UID:
		return mode&0o100 != 0
	case sys.Gid == a.GID || contains(a.Groups, sys.Gid):
		return mode&0o010 != 0
	}
	return mode&0o001 != 0
}

func contains(groups []uint32, gid uint32) bool {
	for _, g := range groups {
		if g == gid {
			return true
		}
	}
	return false
}
