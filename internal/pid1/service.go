package pid1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	restartMin = 50 * time.Millisecond
	restartMax = 800 * time.Millisecond // a crash is never longer than a second without a successor
	goodRun    = 10 * time.Second       // after this long the next crash counts as the first
	abortMax   = 5 * time.Second        // to write its stacks down
	outputLine = 64 << 10
)

// A service is a program that runs as long as the machine does.
type service struct {
	name  string
	argv  []string
	env   []string
	group string
	score int // oom_score_adj
	// clear ends what a crash left in the service's group, such as a program that
	// it ran.
	clear bool
	// runs gets a run before each start, and one at its end; nil when nobody asks.
	runs chan<- run

	log  *journal
	kids *family
	out  *logFile
	pipe *os.File

	mu      sync.Mutex
	process *os.Process
	done    chan struct{}
	stop    context.CancelFunc
}

// A run of a service begins, or has ended.
type run struct {
	ended bool
	how   string
}

// run starts the service and keeps it running until halt.
func (s *service) run(ctx context.Context) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	// The pipe outlives each run: what a dead run left behind can go on writing
	// and isn't killed by a closed pipe.
	s.pipe, s.out = write, newLogFile(filepath.Join(s.log.dir, s.name+".log"))
	go s.copyOutput(read)
	ctx, s.stop = context.WithCancel(ctx)
	s.done = make(chan struct{})
	go s.loop(ctx)
	return nil
}

func (s *service) loop(ctx context.Context) {
	defer close(s.done)
	delay := restartMin
	for ctx.Err() == nil {
		begin := time.Now()
		s.tell(ctx, run{})
		err := s.once(ctx)
		if ctx.Err() != nil {
			return
		}
		s.tell(ctx, run{ended: true, how: err.Error()})
		if time.Since(begin) > goodRun {
			delay = restartMin
		}
		s.log.important("%s ended (%v): starting it again", s.name, err)
		if s.clear {
			_ = killGroup(s.group, time.Second)
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
		delay = min(2*delay, restartMax)
	}
}

func (s *service) tell(ctx context.Context, r run) {
	if s.runs == nil {
		return
	}
	select {
	case s.runs <- r:
	case <-ctx.Done():
	}
}

// once runs the program to its end.
func (s *service) once(ctx context.Context) error {
	group, err := os.Open(filepath.Join(groupRoot, s.group))
	if err != nil {
		return err
	}
	defer group.Close()
	cmd := exec.Command(s.argv[0], s.argv[1:]...)
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Stdout, cmd.Stderr = s.pipe, s.pipe
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	s.mu.Lock()
	if ctx.Err() != nil { // halted in between
		s.mu.Unlock()
		return ctx.Err()
	}
	err = s.kids.start(cmd)
	if err == nil {
		s.process = cmd.Process
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid), fmt.Appendf(nil, "%d", s.score), 0)
	s.log.say("%s runs as process %d", s.name, cmd.Process.Pid)
	err = s.kids.wait(cmd)
	s.mu.Lock()
	s.process = nil
	s.mu.Unlock()
	if err == nil {
		err = errors.New("exit status 0")
	}
	return err
}

// halt ends the service: a friendly signal, and force when that isn't enough.
func (s *service) halt(grace time.Duration) {
	if s == nil || s.stop == nil {
		return
	}
	s.stop()
	s.signal(unix.SIGTERM)
	select {
	case <-s.done:
		return
	case <-time.After(grace):
	}
	s.log.important("%s did not end within %v: killed", s.name, grace)
	s.signal(unix.SIGKILL)
	<-s.done
}

// abort ends a run that hangs. What each part of it was waiting for is in its log
// then: that's what a Go program does with this signal.
func (s *service) abort() {
	s.mu.Lock()
	p := s.process
	s.mu.Unlock()
	if p == nil {
		return
	}
	_ = p.Signal(unix.SIGQUIT)
	time.AfterFunc(abortMax, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.process == p {
			_ = p.Signal(unix.SIGKILL)
		}
	})
}

func (s *service) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		_ = s.process.Signal(sig)
	}
}

// copyOutput writes the program's lines to its log, and the last words of a crash
// to the consoles too.
func (s *service) copyOutput(r *os.File) {
	lines := bufio.NewReaderSize(r, outputLine)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			_, _ = s.out.Write(line)
			if crash(string(line)) {
				s.log.important("%s: %s", s.name, strings.TrimSpace(string(line)))
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func crash(line string) bool {
	return strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.Contains(line, "level=fatal")
}
