package lastboot

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Line of a log that is kept across boots, one a line of its file:
//
//	2026-01-31T08:00:00.123456Z 1c9f4b2a 339 text
type Line struct {
	Time time.Time // by the clock when it was written down
	Boot string    // Short of its boot
	// Number of the kernel's record; 0 for a line of another log.
	Number uint64
	Text   string // without a newline
}

// TimeFormat sorts as text.
const TimeFormat = "2006-01-02T15:04:05.000000Z"

// shortID is how many digits of a boot's id a line holds.
const shortID = 8

// Short is a boot's id as lines hold it; "-" when it is not known.
func Short(id string) string {
	id = strings.ReplaceAll(id, " ", "")
	if id == "" {
		return "-"
	}
	return id[:min(len(id), shortID)]
}

// ThisBoot is the kernel's id of the boot that runs; "" where it can't be read.
func ThisBoot() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// String ends with a newline.
func (l Line) String() string {
	text := strings.ReplaceAll(l.Text, "\n", " ")
	return fmt.Sprintf("%s %s %d %s\n", l.Time.UTC().Format(TimeFormat), Short(l.Boot), l.Number, text)
}

// ParseLine reads a line; ok is false for one of another form.
func ParseLine(line []byte) (l Line, ok bool) {
	fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), " ", 4)
	if len(fields) != 4 || fields[1] == "" || len(fields[1]) > shortID || strings.Contains(fields[3], "\n") {
		return Line{}, false
	}
	at, err := time.Parse(TimeFormat, fields[0])
	if err != nil {
		return Line{}, false
	}
	number, err := strconv.ParseUint(fields[2], 10, 64)
	return Line{Time: at, Boot: fields[1], Number: number, Text: fields[3]}, err == nil
}
