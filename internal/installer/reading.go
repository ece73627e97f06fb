package installer

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
)

// readMax is how long a disk may take to tell what is on it: one that was asleep needs
// ten seconds, and who asks for all disks waits for thirty.
const readMax = 15 * time.Second

// A reading of a disk, which may never end.
type reading struct {
	done     chan struct{}
	contents []disk.Content
	err      error
}

// Disks lists the disks of this machine, and reads them side by side to tell what they
// hold: one that's broken holds up nothing but itself.
func (i *Installer) Disks() []Candidate {
	devices := disk.Devices(i.Sysfs)
	list := make([]Candidate, len(devices))
	var all sync.WaitGroup
	for n, d := range devices {
		all.Go(func() {
			contents, err := i.contents(d)
			list[n] = i.candidate(d, contents, err)
		})
	}
	all.Wait()
	return list
}

func (i *Installer) candidate(d disk.Device, contents []disk.Content, err error) Candidate {
	c := Candidate{Device: d, Contents: contents, Booted: d.Name == i.Boot.Disk}
	if err != nil {
		c.Fault = err.Error()
	}
	return c
}

func (i *Installer) contents(d disk.Device) ([]disk.Content, error) {
	r := i.reading(d)
	select {
	case <-r.done:
		return r.contents, r.err
	case <-time.After(readMax):
		return nil, fmt.Errorf("no answer within %v: %w", readMax, errdefs.ErrUnavailable)
	}
}

// reading is the one of this disk that is under way, or a new one: however often it's
// asked for, a disk that says nothing costs one thread.
func (i *Installer) reading(d disk.Device) *reading {
	i.mu.Lock()
	defer i.mu.Unlock()
	if r := i.readings[d]; r != nil {
		return r
	}
	r := &reading{done: make(chan struct{})}
	i.readings[d] = r
	go func() {
		r.contents, r.err = i.read(d)
		i.mu.Lock()
		delete(i.readings, d)
		i.mu.Unlock()
		close(r.done)
	}()
	return r
}

func contentsOf(d disk.Device) ([]disk.Content, error) {
	f, err := os.Open(d.Path())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return disk.Contents(f, d.Sector, d.Bytes)
}
