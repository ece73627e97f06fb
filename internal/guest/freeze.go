package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	guestv1 "capsule/api/capsule/guest/v1"
)

// freezeMax bounds how long a freeze may last.
const freezeMax = time.Minute

// Requests of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// ice holds writes to volumes.
type ice struct {
	mu    sync.Mutex
	held  []*os.File // folders of frozen file systems
	until time.Time
	timer *time.Timer
}

// freeze writes out the file systems of the folders and holds writes to them until
// thaw, at most for the limit. When it is so already, it only lasts longer.
func (i *ice) freeze(dirs []string, limit time.Duration) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	until := time.Now().Add(limit)
	if i.held != nil {
		if until.After(i.until) {
			i.until = until
			i.timer.Reset(limit)
		}
		return nil
	}
	for _, dir := range dirs {
		if err := i.hold(dir); err != nil {
			i.melt()
			return fmt.Errorf("freeze %s: %w", dir, err)
		}
	}
	i.until = until
	i.timer = time.AfterFunc(time.Until(until), i.thaw)
	return nil
}

func (i *ice) hold(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := unix.IoctlSetInt(int(f.Fd()), fiFreeze, 0); err != nil {
		f.Close()
		return err
	}
	i.held = append(i.held, f)
	return nil
}

// thaw lets writes go on.
func (i *ice) thaw() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.timer != nil {
		i.timer.Stop()
	}
	i.melt()
}

func (i *ice) melt() {
	for _, f := range i.held {
		if err := unix.IoctlSetInt(int(f.Fd()), fiThaw, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			say("thaw %s: %v", f.Name(), err)
		}
		f.Close()
	}
	i.held = nil
}

func (a *agent) Freeze(ctx context.Context, req *guestv1.FreezeRequest) (*guestv1.FreezeResponse, error) {
	limit := time.Duration(req.GetLimitMs()) * time.Millisecond
	if limit <= 0 || limit > freezeMax {
		return nil, fmt.Errorf("freeze for %v: it takes more than none and at most %v: %w", limit, freezeMax, errdefs.ErrInvalidArgument)
	}
	p, _, leave, err := a.visit(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return &guestv1.FreezeResponse{}, p.ice.freeze(p.mounted.writableVolumes(), limit)
}

func (a *agent) Thaw(context.Context, *guestv1.ThawRequest) (*guestv1.ThawResponse, error) {
	p, err := a.started()
	if err != nil {
		return nil, err
	}
	p.ice.thaw()
	return &guestv1.ThawResponse{}, nil
}
