package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	guestv1 "capsule/api/capsule/guest/v1"
	"capsule/internal/await"
	"capsule/internal/cgroup"
	"capsule/internal/process"
)

const (
	// killMax bounds the wait for the end after SIGKILL.
	killMax = 10 * time.Second
	// leaveMax bounds the wait for those who look into the payload's files.
	leaveMax = 10 * time.Second
)

// A payload is the program that the machine is for, and what belongs to it.
type payload struct {
	children *children
	group    cgroup.Group
	mounted  *mounted
	launch   launch // as which it runs; commands derive from it
	first    *child
	out      *outlet
	ice      ice

	gone   chan struct{} // closed when its first process has ended
	ended  chan struct{} // closed when ending is set
	ending *guestv1.Ending

	mu        sync.Mutex
	visitors  sync.WaitGroup // who holds its files open
	dismissed context.Context
	dismiss   context.CancelFunc
	closing   bool
}

// startPayload runs the program in the root that is at l.Root, printing to out
// and err.
func startPayload(c *children, g cgroup.Group, m *mounted, l launch, stdout, stderr io.Writer) (*payload, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	p := &payload{
		children: c, group: g, mounted: m, launch: l, out: newOutlet(),
		gone: make(chan struct{}), ended: make(chan struct{}),
	}
	p.dismissed, p.dismiss = context.WithCancel(context.Background())
	outRead, outWrite, err := pipe(true)
	if err != nil {
		return nil, err
	}
	defer outWrite.Close()
	errRead, errWrite, err := pipe(true)
	if err != nil {
		outRead.Close()
		return nil, err
	}
	defer errWrite.Close()
	p.out.add(stdout, outRead)
	p.out.add(stderr, errRead)
	if p.first, err = c.startPayload(l, [3]*os.File{null, outWrite, errWrite}, g); err != nil {
		return nil, err
	}
	go guarded("payload", p.watch)
	return p, nil
}

// watch waits for the end, and tells it when all that was printed has left and
// all that was written is on the disks.
func (p *payload) watch() {
	end := &guestv1.Ending{Code: process.Killed}
	defer func() {
		p.ending = end
		close(p.ended)
	}()
	code, err := p.children.wait(p.first.Process)
	if err != nil {
		say("wait for the payload: %v", err)
	} else {
		end.Code = int32(code)
	}
	close(p.gone)
	// The kernel has killed all others of its process namespace; commands that
	// are just being started are not in it yet.
	if err := p.group.Kill(); err != nil {
		say("kill what the payload left: %v", err)
	}
	end.Oom = end.Code == process.Killed && p.group.OutOfMemory()
	if !p.out.drain(context.Background()) {
		say("the end of the payload's output was not taken: it is lost")
	}
	p.out.close()
	if err := p.release(); err != nil {
		say("%v", err)
		end.UnmountError = err.Error()
	}
}

// release unmounts everything, when nobody has a file of it open any more.
func (p *payload) release() error {
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	p.dismiss()
	left := make(chan struct{})
	go func() { p.visitors.Wait(); close(left) }()
	var errs []error
	select {
	case <-left:
	case <-time.After(leaveMax):
		errs = append(errs, errors.New("a copy or a command of the payload does not end"))
	}
	p.ice.thaw()
	p.first.pidfd.Close()
	return errors.Join(append(errs, p.mounted.release())...)
}

// visit lets the caller use the payload's files and processes until it calls
// leave. The context ends with the payload.
func (p *payload) visit(ctx context.Context) (inside context.Context, leave func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gone:
		return nil, nil, errEnded
	default:
	}
	if p.closing {
		return nil, nil, errEnded
	}
	p.visitors.Add(1)
	inside, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(p.dismissed, cancel)
	return inside, func() { stop(); cancel(); p.visitors.Done() }, nil
}

var errEnded = fmt.Errorf("the payload has ended: %w", errdefs.ErrFailedPrecondition)

// root opens the file system as the payload's first process sees it.
func (p *payload) root() (process.FS, error) {
	root, err := process.OpenFS(fmt.Sprintf("/proc/%d/root", p.first.Pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EACCES) {
		err = errEnded
	}
	return root, err
}

// stop sends the signal, waits for the grace, then kills.
func (p *payload) stop(ctx context.Context, signal syscall.Signal, grace time.Duration) error {
	p.ice.thaw() // who waits for it to write can't end
	if grace > 0 {
		if err := p.first.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("signal the payload: %w", err)
		}
		if done, err := await.Done(ctx, p.gone, grace); done || err != nil {
			return err
		}
	}
	if err := p.group.Kill(); err != nil {
		return fmt.Errorf("kill the payload: %w", err)
	}
	done, err := await.Done(ctx, p.gone, killMax)
	if !done && err == nil {
		err = fmt.Errorf("its processes do not end, a device may not answer: %w", errdefs.ErrUnavailable)
	}
	return err
}
