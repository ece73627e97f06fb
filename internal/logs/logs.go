// Package logs keeps what workloads print: one folder per workload, written by
// a logger process for each instance in turn and read by whoever asks.
//
// A folder holds numbered files, the highest being written to. A file is a row
// of records (see record.go). When a file is full the next number is begun and
// the oldest file goes, so a folder never outgrows its Limits. Files are never
// renamed, which lets readers follow by number; several writers are kept apart
// by a lock on the folder.
//
// The package never interprets what was printed: bytes go in and come out
// unchanged, lines are only marked.
package logs

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// Root is the folder that holds one folder per workload.
const Root = "/perm/logs/workloads"

// Dir is the log folder of the workload name.
func Dir(name string) string { return filepath.Join(Root, name) }

// Serial is the folder, within the log of a microVM, of what its serial console
// says. It goes with the log.
func Serial(dir string) string { return filepath.Join(dir, "serial") }

// Limits bound the log of one workload on disk.
type Limits struct {
	FileBytes int64 // a file is closed before it grows beyond this
	Files     int   // files kept, the one being written included
}

// DefaultLimits hold without any word of the operator: 16 MiB per workload.
var DefaultLimits = Limits{FileBytes: 4 << 20, Files: 4}

const (
	fileSuffix = ".log"
	fileDigits = 10
)

// fileName of the file with number seq.
func fileName(seq uint64) string {
	digits := strconv.FormatUint(seq, 10)
	if pad := fileDigits - len(digits); pad > 0 {
		digits = strings.Repeat("0", pad) + digits
	}
	return digits + fileSuffix
}

// Remove removes a log; that it is not there is success. Followers end.
func Remove(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove log: %w", err)
	}
	return nil
}

// fileSeq is the inverse of fileName.
func fileSeq(name string) (seq uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, fileSuffix)
	if !ok || len(digits) < fileDigits {
		return 0, false
	}
	seq, err := strconv.ParseUint(digits, 10, 64)
	return seq, err == nil && seq > 0 && fileName(seq) == name
}

// list returns the numbers of the files in dir, oldest first.
func list(dir string) ([]uint64, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var seqs []uint64
	for _, name := range names {
		if seq, ok := fileSeq(name); ok {
			seqs = append(seqs, seq)
		}
	}
	sort.Slice(seqs, func(i, j int) bool { return seqs[i] < seqs[j] })
	return seqs, nil
}
