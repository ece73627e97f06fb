// Package hardware knows the parts of the machine that programs use without asking
// how they are: processor, temperatures, disks, TPM. What takes time to read, or may
// hang with a part that dies, is read in the background and told from memory.
package hardware

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/disk"
	"capsule/internal/smart"
)

const (
	sensorsEvery = 30 * time.Second
	disksAfter   = 20 * time.Second // of a start, which has better to do
	disksEvery   = 20 * time.Minute
	disksMax     = 64 // that are told
	sensorsMax   = 64
)

// Watch reads temperatures and disks now and then.
type Watch struct {
	// Root is "/", but in a test.
	Root string
	// System is the disk that the capsule runs from, "sda".
	System string

	mu           sync.Mutex
	temperatures []*v1.Temperature
	disks        []*v1.DiskHealth
}

// Run reads until ctx ends. Each kind has its own goroutine: a disk that hangs holds up
// nothing else, and what was read of it before is told on.
func (w *Watch) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		again(ctx, 0, sensorsEvery, w.readTemperatures)
	}()
	w.listDisks()
	again(ctx, disksAfter, disksEvery, w.readDisks)
	<-done
	return ctx.Err()
}

func again(ctx context.Context, first, every time.Duration, do func()) {
	for wait := first; ; wait = every {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			do()
		}
	}
}

// Temperatures as they were read last.
func (w *Watch) Temperatures() []*v1.Temperature {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.temperatures)
}

// Disks that there are now, with what they said last.
func (w *Watch) Disks() []*v1.DiskHealth {
	w.listDisks()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.disks)
}

func (w *Watch) readTemperatures() {
	read := Temperatures(w.Root)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.temperatures = read
}

// listDisks takes those up that came, and forgets those that went.
func (w *Watch) listDisks() {
	found := disk.Devices(filepath.Join(w.Root, "sys"))
	w.mu.Lock()
	defer w.mu.Unlock()
	known := map[string]*v1.DiskHealth{}
	for _, h := range w.disks {
		known[h.GetName()+" "+h.GetSerial()] = h
	}
	w.disks = nil
	for _, d := range found[:min(len(found), disksMax)] {
		h := known[d.Name+" "+d.ID()]
		if h == nil {
			h = &v1.DiskHealth{
				Name: d.Name, Model: d.Model, Serial: d.ID(), Size: d.Bytes, Removable: d.Removable, System: d.Name == w.System,
				State: v1.DiskHealthState_DISK_HEALTH_STATE_PENDING, Message: "not asked yet",
			}
		}
		w.disks = append(w.disks, h)
	}
}

// readDisks asks one after the other. A record that others may hold is never changed.
func (w *Watch) readDisks() {
	for _, h := range w.Disks() {
		asked := proto.CloneOf(h)
		smart.Read(filepath.Join(w.Root, "sys"), asked)
		if !asked.GetAsleep() {
			asked.CheckedAt = timestamppb.Now()
		}
		w.mu.Lock()
		if at := slices.Index(w.disks, h); at >= 0 {
			w.disks[at] = asked
		}
		w.mu.Unlock()
	}
}

// Temperatures of all sensors but those of disks, which asking might wake.
func Temperatures(root string) (list []*v1.Temperature) {
	chips, _ := filepath.Glob(filepath.Join(root, "sys/class/hwmon/hwmon*")) // the pattern is good
	for _, chip := range chips {
		name := line(chip, "name")
		if name == "nvme" || name == "drivetemp" {
			continue
		}
		inputs, _ := filepath.Glob(filepath.Join(chip, "temp*_input"))
		for _, input := range inputs {
			sensor := strings.TrimSuffix(input, "_input")
			label := line(sensor + "_label")
			if label == "" {
				label = filepath.Base(sensor)
			}
			list = appendSane(list, name+": "+label, input, sensor+"_crit")
		}
	}
	if len(list) == 0 { // boards whose sensors only the kernel's own cooling knows
		zones, _ := filepath.Glob(filepath.Join(root, "sys/class/thermal/thermal_zone*"))
		for _, zone := range zones {
			list = appendSane(list, line(zone, "type"), filepath.Join(zone, "temp"), "")
		}
	}
	return list[:min(len(list), sensorsMax)]
}

// appendSane takes a sensor that tells something: many boards list some that nothing is
// connected to.
func appendSane(list []*v1.Temperature, name, input, critical string) []*v1.Temperature {
	const milli, coldest, hottest = 1000, -40, 150
	celsius, ok := number(input)
	if celsius /= milli; !ok || celsius <= coldest || celsius >= hottest || celsius == 0 {
		return list
	}
	limit, _ := number(critical) // 0 is none
	if limit /= milli; limit <= 0 || limit >= hottest {
		limit = 0
	}
	return append(list, &v1.Temperature{Name: name, Celsius: celsius, Critical: limit})
}

// Processor is as it names itself; "" where it does not.
func Processor(root string) string {
	f, err := os.Open(filepath.Join(root, "proc/cpuinfo"))
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	return ""
}

// Load is of 1, 5 and 15 minutes; nil when it can't be read.
func Load(root string) (load []float64) {
	fields := strings.Fields(line(filepath.Join(root, "proc/loadavg")))
	const averages = 3
	if len(fields) < averages {
		return nil
	}
	for _, f := range fields[:averages] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return nil
		}
		load = append(load, n)
	}
	return load
}

// TPM is "TPM 2.0", or of another version; "" when there is none.
func TPM(root string) string {
	chip := filepath.Join(root, "sys/class/tpm/tpm0")
	if _, err := os.Stat(chip); err != nil {
		return ""
	}
	if line(chip, "tpm_version_major") == "2" {
		return "TPM 2.0"
	}
	return "TPM 1.2, which keeps no secrets here"
}

// Link is what the kernel tells of a network card.
func Link(root, name string) *v1.UplinkState {
	dir := filepath.Join(root, "sys/class/net", name)
	s := &v1.UplinkState{Name: name, HardwareAddress: line(dir, "address"), Carrier: line(dir, "carrier") == "1"}
	if speed, err := strconv.ParseUint(line(dir, "speed"), 10, 32); err == nil && s.Carrier { // -1 is unknown
		s.Speed = uint32(speed)
	}
	return s
}

// line is a file's text; "" when it can't be read.
func line(path ...string) string {
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func number(file string) (float64, bool) {
	n, err := strconv.ParseFloat(line(file), 64)
	return n, err == nil
}
