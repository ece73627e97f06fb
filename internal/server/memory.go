package server

import (
	"os"
	"strconv"
	"strings"
)

type memoryUse struct{ total, available uint64 } // bytes

// memory reads /proc/meminfo; zeros when there is none.
func memory() memoryUse {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return memoryUse{}
	}
	field := func(name string) uint64 {
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, name+":"); ok {
				kib, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
				return kib << 10
			}
		}
		return 0
	}
	return memoryUse{field("MemTotal"), field("MemAvailable")}
}
