package drivertest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"capsule/internal/workload"
)

func (s *suite) limits(t *testing.T) {
	t.Run("IO-05 over the memory limit", s.outOfMemory)
	t.Run("under the memory limit", s.enoughMemory)
	t.Run("use", s.use)
	t.Run("use of disks", slow(s.useOfDisks))
	t.Run("processes", s.bombed)
	t.Run("disk", s.disk)
	t.Run("traffic with disks", slow(s.traffic))
}

func (s *suite) outOfMemory(t *testing.T) {
	in := s.instance("allocate", "256", "then", "sleep", "10h")
	in.Resources.MemoryBytes = 64 << 20
	s.start(t, in)
	if o := s.ended(t, in.ID); !o.OOM || o.ExitCode != 128+sigkill {
		t.Errorf("%+v, want out of memory", o)
	}
	// A new driver still knows, and the next run starts with a clean slate.
	s.restart()
	if o := observe(t, s.driver, in.ID); o == nil || !o.OOM {
		t.Errorf("%+v, want out of memory", o)
	}
	if err := s.driver.Start(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	if err := s.driver.Stop(t.Context(), in.ID, sigkill, 0); err != nil {
		t.Fatal(err)
	}
}

// A limit can be used to the end: what surrounds a payload is not taken from it.
func (s *suite) enoughMemory(t *testing.T) {
	in := s.instance("allocate", "56")
	in.Resources.MemoryBytes = 64 << 20
	if _, o := s.result(t, in); o.ExitCode != 0 {
		t.Errorf("%+v", o)
	}
}

func (s *suite) use(t *testing.T) {
	in := s.instance("allocate", "32", "then", "sleep", "10h")
	in.Resources = workload.Resources{MemoryBytes: 128 << 20, CPUMillis: 500, PIDs: 50}
	s.start(t, in)
	s.printed(t, in, "allocated 32")
	st, err := s.driver.Stats(t.Context(), in.ID)
	if err != nil {
		t.Fatal(err)
	}
	if st.MemoryBytes < 32<<20 || st.MemoryBytes > 128<<20 || st.PIDs == 0 || st.PIDs > 50 || st.CPUTime <= 0 || st.CPUTime > time.Hour {
		t.Errorf("%+v", st)
	}
}

// What a workload writes through counts once, whatever lies between it and the disk.
func (s *suite) useOfDisks(t *testing.T) {
	if !s.CountsIO {
		t.Skip("SKIPPED: instances have no control group of their own here")
	}
	in := s.instance("fill", "/file", "8", "then", "print", "filled", "then", "sleep", "10h")
	s.start(t, in)
	s.printed(t, in, "filled")
	st, err := s.driver.Stats(t.Context(), in.ID)
	if err != nil {
		t.Fatal(err)
	}
	if st.DiskWritten < 8<<20 || st.DiskWritten > 24<<20 {
		t.Errorf("%d bytes written of 8 MiB", st.DiskWritten)
	}
}

// One that makes processes without end has as many as it may, another goes on, and it
// can be ended.
func (s *suite) bombed(t *testing.T) {
	other := s.instance("tick", "100ms")
	s.start(t, other)
	in := s.instance("bomb")
	in.Resources = workload.Resources{MemoryBytes: 64 << 20, CPUMillis: 500, PIDs: 40}
	s.start(t, in)
	s.printed(t, in, "bombing")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for most := uint64(0); most < 40; {
		st, err := s.driver.Stats(ctx, in.ID)
		if err != nil {
			t.Fatal(err)
		}
		if most = max(most, st.PIDs); most > 40 {
			t.Errorf("%d processes of 40", most)
		}
	}
	s.printed(t, other, "tick 20")
	if err := s.driver.Stop(ctx, in.ID, sigkill, 0); err != nil {
		t.Error(err)
	}
	if o := observe(t, s.driver, other.ID); o.State != workload.Running {
		t.Errorf("the other one: %+v", o)
	}
}

// What it keeps outside of its mounts is bounded, and given back by what it removes.
func (s *suite) disk(t *testing.T) {
	in := s.instance("fill", "/file", "200")
	in.Resources.DiskBytes = 64 << 20
	out, o := s.result(t, in)
	if o.ExitCode != 1 || !strings.Contains(out, "quota") && !strings.Contains(out, "no space") {
		t.Errorf("%+v: %s", o, out)
	}
	in = s.instance("fill", "/file", "30", "then", "rm", "/file", "then", "fill", "/other", "40")
	in.Resources.DiskBytes = 64 << 20
	if out, o := s.result(t, in); o.ExitCode != 0 {
		t.Errorf("%+v: %s", o, out)
	}
}

// Traffic with disks takes as long as its limits ask for, each by itself.
func (s *suite) traffic(t *testing.T) {
	const mib = 4
	for name, tc := range map[string]struct {
		limit workload.IO
		verb  []string
		least time.Duration
	}{
		"write": {workload.IO{WriteBytes: 1 << 20}, []string{"fill", "/more", fmt.Sprint(mib)}, (mib - 1) * time.Second},
		"read":  {workload.IO{ReadBytes: 1 << 20}, []string{"cold", "/file"}, (mib - 1) * time.Second},
		// Each MiB that is synced is at least one request.
		"write operations": {workload.IO{WriteOperations: 10}, []string{"fill", "/more", "25"}, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			in := s.instance("fill", "/file", fmt.Sprint(mib), "then", "print", "filled", "then", "sleep", "10h")
			in.Resources.IO = tc.limit
			s.start(t, in)
			s.printed(t, in, "filled")
			began := time.Now()
			code, out, errs := s.command(t, in.ID, payload(tc.verb...))
			if took := time.Since(began); code != 0 || took < tc.least {
				t.Errorf("after %v, want at least %v: %d, %s%s", took, tc.least, code, out, errs)
			}
			// What waits for its turn holds up no end.
			if err := s.driver.Stop(t.Context(), in.ID, sigkill, 0); err != nil {
				t.Error(err)
			}
		})
	}
}
