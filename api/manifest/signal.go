package manifest

import (
	"strconv"
	"strings"
)

// Real-time signals of Linux as glibc and musl hand them to programs.
const (
	signalRTMin = 34
	signalRTMax = 64
)

// signals of Linux, the same on amd64 and arm64; kept here because the client
// may run on a system with other numbers.
var signals = map[string]int{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "IOT": 6, "BUS": 7,
	"FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14,
	"TERM": 15, "STKFLT": 16, "CHLD": 17, "CLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20,
	"TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27,
	"WINCH": 28, "IO": 29, "POLL": 29, "PWR": 30, "SYS": 31,
	"RTMIN": signalRTMin, "RTMAX": signalRTMax,
}

// ParseSignal reads "SIGTERM", "term", "SIGRTMIN+3", "RTMAX-1" or a number and
// returns the number on Linux.
func ParseSignal(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil && decimal.MatchString(s) {
		if n < 1 || n > signalRTMax {
			return 0, invalid("signal %d is out of range", n)
		}
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, ok := signals[name]; ok {
		return n, nil
	}
	if offset, ok := strings.CutPrefix(name, "RTMIN+"); ok {
		if n, err := strconv.Atoi(offset); err == nil && decimal.MatchString(offset) && n >= 0 && n <= signalRTMax-signalRTMin {
			return signalRTMin + n, nil
		}
	}
	if offset, ok := strings.CutPrefix(name, "RTMAX-"); ok {
		if n, err := strconv.Atoi(offset); err == nil && decimal.MatchString(offset) && n >= 0 && n <= signalRTMax-signalRTMin {
			return signalRTMax - n, nil
		}
	}
	return 0, invalid("unknown signal %q; want a name such as SIGTERM or a number", clip(s))
}
