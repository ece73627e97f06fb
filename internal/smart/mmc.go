package smart

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
)

// readMMC goes by what the driver read of an eMMC when it found it, in tenths of its
// life and three steps of its spare blocks (JESD84-B51, 7.4.22 to 7.4.24).
func readMMC(dir string, h *v1.DiskHealth) {
	parseMMC(attribute(dir, "device/life_time"), attribute(dir, "device/pre_eol_info"), h)
}

func parseMMC(life, spare string, h *v1.DiskHealth) {
	used := uint64(0)
	for _, word := range strings.Fields(life) {
		if n, err := strconv.ParseUint(word, 0, 8); err == nil {
			used = max(used, n)
		}
	}
	left, _ := strconv.ParseUint(spare, 0, 8) // 0 is "not told"
	if used == 0 && left == 0 {
		silent(h, "tells nothing of its health")
		return
	}
	const (
		tenth = 10
		over  = 11 // the life that its maker gives it is over
		least = 2  // most spare blocks are taken
		none  = 3  // nearly all are
	)
	var failing, worn []string
	if used > 0 {
		h.UsedPercent = proto.Uint32(uint32(min(used, over) * tenth))
		if used*tenth >= usedWarn {
			worn = append(worn, fmt.Sprintf("%d %% of its life is used up", min(used, over)*tenth))
		}
	}
	if left >= none {
		failing = append(failing, "its spare blocks run out")
	} else if left == least {
		worn = append(worn, "most of its spare blocks are used up")
	}
	judge(h, failing, worn)
}
