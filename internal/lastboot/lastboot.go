// Package lastboot knows how the boot before this one ended, and keeps lines of logs
// that tell in which boot they were written (Line).
//
// Each boot leaves a record on the disk when it begins, and adds to it how it ends
// when it ends in order. One whose record says nothing of an end had none: then the
// hardware may have kept why (Evidence). Process 1 does all that; everybody else asks
// Read.
package lastboot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"capsule/internal/durable"
)

const (
	// File is the record of the newest boot.
	File = "/perm/boot.json"
	// FactFile is what Read reads, for as long as the machine runs.
	FactFile = "/run/capsule/lastboot.json"
	// GoingFile says why the machine is about to end in order.
	GoingFile = "/run/capsule/going.json"

	textMax = 1024     // bytes of a reason: it may hold what others said
	fileMax = 64 << 10 // bytes of a file that is read
)

// Kind of an end.
type Kind string

// Ends of a boot.
const (
	Unknown  Kind = "unknown"   // nothing was noted of it: a first start, or a version without records
	Restart  Kind = "restart"   // in order
	PowerOff Kind = "power-off" // in order
	Panic    Kind = "panic"     // of the kernel, which could leave its last words
	Watchdog Kind = "watchdog"  // reset by a device that remembers it
	Lost     Kind = "lost"      // without order or trace: a power cut, mostly
)

// End is how a boot ended.
type End struct {
	Kind Kind `json:"kind"`
	// Text is for operators, without a full stop: "reboot, asked for by anna".
	Text string `json:"text"`
	// Time of it, or of the last sign of life; zero when that is not known.
	Time time.Time `json:"time,omitzero"`
}

// Ordered tells an end that was asked for from one that happened.
func (e End) Ordered() bool { return e.Kind == Restart || e.Kind == PowerOff }

// Boot is one run of the machine.
type Boot struct {
	ID      string    `json:"id"` // the kernel's boot_id
	Version string    `json:"version"`
	Slot    string    `json:"slot"`
	Begun   time.Time `json:"begun"`
	End     *End      `json:"end,omitempty"` // nil while it runs, and for one that was cut
}

// Fact is what is known of the boot before this one.
type Fact struct {
	Before Boot `json:"before"` // its fields are zero where nothing was noted
	End    End  `json:"end"`    // of it
}

// Read gives the fact. It is ErrNotExist in the first seconds of a boot, while it is
// found out.
func Read() (Fact, error) {
	var f Fact
	err := read(FactFile, &f)
	return f, err
}

// Tell writes the fact for Read.
func Tell(file string, f Fact) error { return write(file, f, os.WriteFile) }

// Begin records a new boot and gives the one before, nil when there is no record of
// one. A record that can't be read is none, and an error beside.
func Begin(file string, now Boot) (before *Boot, err error) {
	before = &Boot{}
	if err = read(file, before); err != nil || before.ID == now.ID {
		before = nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return before, errors.Join(err, write(file, now, durable.WriteFile))
}

// Finish adds to the record of the boot that runs how it ends. Without a record there
// is nothing to add to.
func Finish(file string, end End) error {
	var b Boot
	if err := read(file, &b); err != nil {
		return err
	}
	end.Text = bounded(end.Text)
	b.End = &end
	return write(file, b, durable.WriteFile)
}

// Going says why the machine is about to end in order, for Why.
func Going(file string, end End) error {
	end.Text = bounded(end.Text)
	return write(file, end, os.WriteFile)
}

// Why gives what Going said last.
func Why(file string) (End, bool) {
	var e End
	err := read(file, &e)
	return e, err == nil && e.Ordered()
}

func bounded(text string) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	if len(text) > textMax {
		text = strings.ToValidUTF8(text[:textMax], "")
	}
	return text
}

func read(file string, v any) error {
	text, err := readFile(file, fileMax)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	return nil
}

func write(file string, v any, put func(string, []byte, fs.FileMode) error) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return put(file, append(text, '\n'), 0o644)
}
