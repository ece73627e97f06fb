package drivertest

import (
	"testing"
	"time"

	"capsule/internal/workload"
)

func (s *suite) limits(t *testing.T) {
	t.Run("IO-05 over the memory limit", s.outOfMemory)
	t.Run("under the memory limit", s.enoughMemory)
	t.Run("use", s.use)
	t.Run("use of disks", s.useOfDisks)
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
