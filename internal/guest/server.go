package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	guestv1 "capsule/api/capsule/guest/v1"
	"capsule/internal/cgroup"
	"capsule/internal/process"
)

// Limits of the channel: the agent's memory is small.
const (
	messageMax  = 1 << 20
	streamsMax  = 128
	windowBytes = 256 << 10
	headersMax  = 16 << 10
)

// agent serves the capsule.
type agent struct {
	guestv1.UnimplementedGuestServiceServer

	children       children
	stdout, stderr *os.File // ports of what the payload prints

	mu      sync.Mutex
	begun   bool // Run was called
	payload *payload
}

func newServer(a *agent) *grpc.Server {
	s := grpc.NewServer(
		grpc.MaxRecvMsgSize(messageMax), grpc.MaxConcurrentStreams(streamsMax), grpc.MaxHeaderListSize(headersMax),
		grpc.InitialWindowSize(windowBytes), grpc.InitialConnWindowSize(windowBytes),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
			err = answered(info.FullMethod, func() (err error) { resp, err = handle(ctx, req); return err })
			return resp, err
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			return answered(info.FullMethod, func() error { return handle(srv, stream) })
		}))
	guestv1.RegisterGuestServiceServer(s, a)
	return s
}

// answered makes the answer of a call: an error of a class, also of a panic.
func answered(method string, call func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			say("%s: panic: %v\n%s", method, p, debug.Stack())
			err = status.Errorf(codes.Internal, "%s: the agent panicked, see the serial log", method)
		}
	}()
	err = call()
	if _, ok := status.FromError(err); ok {
		return err // none, or gRPC's own
	}
	return status.Error(code(err), err.Error())
}

func code(err error) codes.Code {
	for class, code := range map[error]codes.Code{
		errdefs.ErrInvalidArgument:    codes.InvalidArgument,
		errdefs.ErrNotFound:           codes.NotFound,
		errdefs.ErrAlreadyExists:      codes.AlreadyExists,
		errdefs.ErrFailedPrecondition: codes.FailedPrecondition,
		errdefs.ErrUnavailable:        codes.Unavailable,
		syscall.ENOSPC:                codes.ResourceExhausted,
		context.Canceled:              codes.Canceled,
		context.DeadlineExceeded:      codes.DeadlineExceeded,
	} {
		if errors.Is(err, class) {
			return code
		}
	}
	return codes.Internal
}

// started gives the payload, which may have ended.
func (a *agent) started() (*payload, error) {
	if p := a.current(); p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("no payload was started: %w", errdefs.ErrFailedPrecondition)
}

// visit is payload.visit of the payload that was started.
func (a *agent) visit(ctx context.Context) (p *payload, inside context.Context, leave func(), err error) {
	if p, err = a.started(); err != nil {
		return nil, nil, nil, err
	}
	inside, leave, err = p.visit(ctx)
	return p, inside, leave, err
}

// current is the payload, nil before its start.
func (a *agent) current() *payload {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.payload
}

func (a *agent) State(context.Context, *guestv1.StateRequest) (*guestv1.StateResponse, error) {
	p := a.current()
	if p == nil {
		return &guestv1.StateResponse{Phase: guestv1.StateResponse_PHASE_READY}, nil
	}
	select {
	case <-p.ended:
		return &guestv1.StateResponse{Phase: guestv1.StateResponse_PHASE_ENDED}, nil
	default:
		return &guestv1.StateResponse{Phase: guestv1.StateResponse_PHASE_RUNNING}, nil
	}
}

func (a *agent) Run(_ context.Context, req *guestv1.RunRequest) (*guestv1.RunResponse, error) {
	a.mu.Lock()
	again := a.begun
	a.begun = true
	a.mu.Unlock()
	if again {
		return nil, fmt.Errorf("a guest runs once: %w", errdefs.ErrAlreadyExists)
	}
	// Also for a caller that leaves: the next one asks how it went.
	p, err := a.run(req)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.payload = p
	return &guestv1.RunResponse{}, nil
}

func (a *agent) run(req *guestv1.RunRequest) (p *payload, err error) {
	if len(req.GetArgs()) == 0 {
		return nil, &process.Problem{Text: "no program was named"}
	}
	if _, err := setClock(req.GetTime()); err != nil {
		return nil, err
	}
	if err := setNetwork(req.GetHostname(), req.GetInterface()); err != nil {
		return nil, err
	}
	out, err1 := newPortWriter(a.stdout)
	errOut, err2 := newPortWriter(a.stderr)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	m := &mounted{}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.release())
		}
	}()
	l, err := prepare(m, req)
	if err != nil {
		return nil, err
	}
	g, err := newGroup(cgroup.Root + "/payload")
	if err != nil {
		return nil, err
	}
	if err := limitGroup(g, req.GetMemory(), req.GetPids()); err != nil {
		return nil, err
	}
	return startPayload(&a.children, g, m, l, out, errOut)
}

// prepare mounts the root and what is shown in it, and looks whether the program
// can run there.
func prepare(m *mounted, req *guestv1.RunRequest) (launch, error) {
	if err := m.addRoot(int(req.GetLayers())); err != nil {
		return launch{}, err
	}
	volumes, err := m.addVolumes(req.GetVolumes())
	if err != nil {
		return launch{}, err
	}
	l := launch{Root: rootDir, Hostname: req.GetHostname(), Args: req.GetArgs(), Cwd: req.GetCwd(), Limits: limits, OwnStandard: true}
	for _, f := range []struct {
		source, path string
		content      []byte
	}{{resolvConf, "/etc/resolv.conf", req.GetResolvConf()}, {hosts, "/etc/hosts", req.GetHosts()}} {
		if err := writeFile(f.source, f.content); err != nil {
			return launch{}, err
		}
		l.Shown = append(l.Shown, showing{Source: f.source, Path: f.path})
	}
	l.Shown = append(l.Shown, volumes...)
	if l.Cwd == "" {
		l.Cwd = "/"
	}
	fs, err := process.OpenFS(rootDir)
	if err != nil {
		return launch{}, err
	}
	defer fs.Close()
	if l.Account, err = fs.Account(req.GetUser()); err != nil {
		return launch{}, err
	}
	files, err := addFiles(filesDir, fs, l.Account, req.GetFiles())
	if err != nil {
		return launch{}, err
	}
	l.Shown = append(l.Shown, files...)
	l.Env = process.Environment(req.GetEnv(), l.Account)
	search, _ := process.Lookup(l.Env, "PATH")
	return l, fs.Program(l.Args[0], search, l.Cwd, l.Account)
}

func (a *agent) Wait(ctx context.Context, _ *guestv1.WaitRequest) (*guestv1.WaitResponse, error) {
	end, err := a.end(ctx)
	return &guestv1.WaitResponse{Ending: end}, err
}

// end waits for the payload's end.
func (a *agent) end(ctx context.Context) (*guestv1.Ending, error) {
	p, err := a.started()
	if err != nil {
		return nil, err
	}
	select {
	case <-p.ended:
		return p.ending, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (a *agent) Stop(ctx context.Context, req *guestv1.StopRequest) (*guestv1.StopResponse, error) {
	p, err := a.started()
	if err != nil {
		return nil, err
	}
	if err := p.stop(ctx, syscall.Signal(req.GetSignal()), time.Duration(req.GetGraceMs())*time.Millisecond); err != nil {
		return nil, err
	}
	end, err := a.end(ctx)
	return &guestv1.StopResponse{Ending: end}, err
}

func (a *agent) PowerOff(ctx context.Context, _ *guestv1.PowerOffRequest) (*guestv1.PowerOffResponse, error) {
	if p := a.current(); p != nil {
		if err := p.stop(ctx, 0, 0); err != nil {
			say("power off: %v", err)
		} else if _, err := a.end(ctx); err != nil {
			say("power off: %v", err)
		}
	}
	powerOff()
	return &guestv1.PowerOffResponse{}, nil
}

func (a *agent) Update(_ context.Context, req *guestv1.UpdateRequest) (*guestv1.UpdateResponse, error) {
	was, err := setClock(req.GetTime())
	if err != nil {
		return nil, err
	}
	if req.ResolvConf != nil {
		err = writeFile(resolvConf, req.GetResolvConf())
	}
	if req.Hosts != nil {
		err = errors.Join(err, writeFile(hosts, req.GetHosts()))
	}
	return &guestv1.UpdateResponse{Time: timestamppb.New(was)}, err
}

func (a *agent) Stats(context.Context, *guestv1.StatsRequest) (*guestv1.StatsResponse, error) {
	p, err := a.started()
	if err != nil {
		return nil, err
	}
	use, err := p.group.Use()
	if err != nil {
		return nil, fmt.Errorf("read the payload's use: %w", err)
	}
	return &guestv1.StatsResponse{Memory: use.Memory, CpuUs: uint64(use.CPU.Microseconds()), Pids: use.PIDs}, nil
}
