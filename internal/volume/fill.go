package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/durable"
	"capsule/internal/filecopy"
	"capsule/internal/image"
)

// draftDir is the folder data of a volume until it is whole.
const draftDir = dataDir + ".new"

var (
	errNoData   = fmt.Errorf("its folder %q is gone: %w", dataDir, errdefs.ErrDataLoss)
	errNoFolder = errors.New("the image has no such folder")
	errNoSpace  = errors.New("no space for that")
)

// filling is what a fresh volume takes its content from.
type filling struct {
	mounts []*v1.Mount // of that volume
	img    image.Image
}

// fill makes the folder data of a volume that is mounted here, once: with what
// the image has at the volume's path, or empty. A cut leaves a draft, which is
// made anew.
func (m *Manager) fill(ctx context.Context, volume string, r record, f filling) error {
	dir := m.dirOf(volume)
	_, err := os.Lstat(filepath.Join(dir, dataDir))
	switch {
	case err == nil && !r.Fresh:
		return nil
	case err == nil:
		return m.filled(volume)
	case !errors.Is(err, os.ErrNotExist):
		return err
	case !r.Fresh: // it had the folder once
		return errNoData
	}
	err = m.draft(ctx, dir, f)
	if err == nil {
		err = syncFS(dir)
	}
	if err != nil {
		return errors.Join(m.tooLittle(err), os.RemoveAll(filepath.Join(dir, draftDir)))
	}
	if err := durable.Rename(filepath.Join(dir, draftDir), filepath.Join(dir, dataDir)); err != nil {
		return err
	}
	return m.filled(volume)
}

// tooLittle says what lacked space when a draft could not be made: the pool, which
// workloads wait for, or the volume.
func (m *Manager) tooLittle(err error) error {
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	if full := m.spacious(); full != nil {
		return full
	}
	return fmt.Errorf("the image's content does not fit in it: make it larger, or mount it with copyImageContent: false: %w: %w", err, errdefs.ErrResourceExhausted)
}

// spacious is errNoSpace while the pool is too full to copy something into a
// volume.
func (m *Manager) spacious() error {
	err := m.crowded()
	if errdefs.IsResourceExhausted(err) {
		return fmt.Errorf("%w: %w", errNoSpace, err)
	}
	return err
}

func (m *Manager) filled(volume string) error {
	return m.change(func(c *change) error {
		r, ok := c.volumes[volume]
		if !ok {
			return nil
		}
		r.Fresh = false
		return c.putVolume(volume, r)
	})
}

// draft makes data.new. Of several mounts of the volume the first counts at whose
// path the image has a folder.
func (m *Manager) draft(ctx context.Context, dir string, f filling) error {
	if err := os.RemoveAll(filepath.Join(dir, draftDir)); err != nil {
		return err
	}
	for _, mount := range f.mounts {
		if mount.CopyImageContent != nil && !mount.GetCopyImageContent() {
			continue
		}
		if err := m.spacious(); err != nil {
			return err
		}
		err := m.opts.Content.View(ctx, f.img, func(root string) error {
			return m.copyFolder(ctx, root, mount.GetPath(), dir)
		})
		if !errors.Is(err, errNoFolder) {
			return err
		}
	}
	return os.Mkdir(filepath.Join(dir, draftDir), 0o755)
}

// copyFolder copies the folder at source in a root, with its own owner and mode,
// to the draft in dir. It ends before the pool, which all volumes share, is full.
func (m *Manager) copyFolder(ctx context.Context, root, source, dir string) error {
	from, err := filecopy.OpenRoot(root)
	if err != nil {
		return err
	}
	defer from.Close()
	switch from.Kind(source) {
	case filecopy.Missing:
		return errNoFolder
	case filecopy.File:
		return fmt.Errorf("the image has a file at %q, over which no volume can be mounted: %w", source, errdefs.ErrInvalidArgument)
	}
	to, err := filecopy.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer to.Close()
	source = path.Clean(source) + "/" // a link to a folder counts as the folder
	r, w := io.Pipe()
	stop := context.AfterFunc(ctx, func() { r.CloseWithError(ctx.Err()) })
	defer stop()
	paced := &paced{r: r, pause: func() error { return errors.Join(syncFS(dir), m.spacious()) }}
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		w.CloseWithError(filecopy.Pack(from, source, w))
	}()
	_, _, err = filecopy.Unpack(to, "/"+draftDir, source, paced)
	r.CloseWithError(err)
	<-packed // the root is unmounted next
	return err
}

// paced reads from r with a pause after every writeOutEvery bytes.
type paced struct {
	r     io.Reader
	since int64
	pause func() error
}

func (p *paced) Read(b []byte) (int, error) {
	if p.since >= writeOutEvery {
		p.since = 0
		if err := p.pause(); err != nil {
			return 0, err
		}
	}
	n, err := p.r.Read(b)
	p.since += int64(n)
	return n, err
}

// syncFS returns once all that was written to the file system at dir is on disk.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd()))), f.Close())
}
