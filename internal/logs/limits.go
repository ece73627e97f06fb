package logs

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"capsule/internal/durable"
)

// LimitsFile holds what an operator declares of the logs of all workloads. It is a
// file since loggers outlive the daemon, and go on while there is none.
const LimitsFile = "/perm/logs/limits"

// SaveLimits writes them to a file, in one step.
func SaveLimits(file string, l Limits) error {
	if ReadLimits(file) == l {
		return nil
	}
	if err := durable.WriteFile(file, fmt.Appendf(nil, "%d %d\n", l.FileBytes, l.Files), 0o644); err != nil {
		return fmt.Errorf("keep the limits of logs: %w", err)
	}
	return nil
}

// ReadLimits reads them; DefaultLimits where there is no such file, or one that can't
// be read: a log is never without limits.
func ReadLimits(file string) Limits {
	text, err := os.ReadFile(file)
	if err != nil {
		return DefaultLimits
	}
	words := strings.Fields(string(text))
	if len(words) != 2 {
		return DefaultLimits
	}
	size, badSize := strconv.ParseInt(words[0], 10, 64)
	files, badFiles := strconv.Atoi(words[1])
	if badSize != nil || badFiles != nil || size <= 0 || files <= 0 {
		return DefaultLimits
	}
	return Limits{FileBytes: size, Files: files}
}

// Follow has the limits in a file count. It is read now, and when the next file of the
// log begins.
func (w *Writer) Follow(file string) {
	w.source = file
	w.limits = ReadLimits(file)
}
