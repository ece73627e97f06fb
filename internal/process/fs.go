package process

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"capsule/internal/filecopy"
)

// FS is a root file system to look at: that of an image or of a running
// instance. Nothing in it is trusted.
type FS struct{ *filecopy.Root }

// OpenFS opens the root at dir.
func OpenFS(dir string) (FS, error) {
	root, err := filecopy.OpenRoot(dir)
	return FS{root}, err
}

// tableMax bounds what is read of passwd and group files.
const tableMax = 1 << 20

// table calls fn with the fields of each line of a file like /etc/passwd. A
// missing file has no lines.
func (r FS) table(name string, fields int, fn func([]string)) error {
	f, err := r.Open(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, tableMax))
	for lines.Scan() {
		if row := strings.Split(lines.Text(), ":"); len(row) >= fields {
			fn(row)
		}
	}
	return lines.Err()
}
