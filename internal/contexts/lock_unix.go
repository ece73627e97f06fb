//go:build !windows

package contexts

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// tryLock locks a file that no other open one has locked. Where the file system has
// no locks it goes on without: a key that was just made must be saved all the same.
func tryLock(f *os.File) (bool, error) {
	for {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case err == nil, errors.Is(err, errors.ErrUnsupported), errors.Is(err, unix.ENOLCK):
			return true, nil
		default:
			return false, err
		}
	}
}

// unlock has nothing to do: closing the file unlocks it.
func unlock(*os.File) {}
