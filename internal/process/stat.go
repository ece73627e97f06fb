package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// exitingFlag is PF_EXITING of a process's flags (linux/sched.h).
const exitingFlag = 0x4

// Started tells when a process started, in clock ticks from the kernel's start;
// fs.ErrNotExist or ESRCH when there is none of that number.
func Started(pid int) (ticks uint64, err error) {
	s, err := readStat(pid)
	return s.start, err
}

// Ending tells whether a process is gone, exits, or was killed and will.
func Ending(pid int) bool {
	s, err := readStat(pid)
	if err != nil {
		return gone(err)
	}
	if s.exiting {
		return true
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return gone(err) || killPending(status)
}

func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// stat is a part of /proc/PID/stat (proc_pid_stat(5)).
type stat struct {
	state           byte
	parent, session int
	start           uint64
	exiting         bool
}

func readStat(pid int) (stat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	s, err := parseStat(text)
	if err != nil {
		return s, fmt.Errorf("process %d: %w", pid, err)
	}
	return s, nil
}

// parseStat reads "PID (NAME) STATE PARENT GROUP SESSION …". The name may hold
// anything, even a ")": fields are counted after the last.
func parseStat(text []byte) (s stat, err error) {
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	const stateField, parentField, sessionField, flagsField, startField = 0, 4 - 3, 6 - 3, 9 - 3, 22 - 3
	if len(fields) <= startField {
		return s, fmt.Errorf("only %d fields", len(fields))
	}
	s.state = fields[stateField][0]
	s.parent, err = strconv.Atoi(string(fields[parentField]))
	if err == nil {
		s.session, err = strconv.Atoi(string(fields[sessionField])) // -1 of one that has just ended
	}
	var flags uint64
	if err == nil {
		flags, err = strconv.ParseUint(string(fields[flagsField]), 10, 64)
	}
	if err == nil {
		s.start, err = strconv.ParseUint(string(fields[startField]), 10, 64)
	}
	s.exiting = flags&exitingFlag != 0
	return s, err
}

// killPending finds SIGKILL among the signals, of the process or of its first thread,
// that wait in /proc/PID/status (proc_pid_status(5)).
func killPending(status []byte) bool {
	for line := range bytes.Lines(status) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if string(name) != "SigPnd" && string(name) != "ShdPnd" {
			continue
		}
		mask, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		if err == nil && mask&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
