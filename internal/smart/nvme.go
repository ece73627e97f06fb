package smart

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
)

// Of linux/nvme_ioctl.h and the NVMe base specification 2.0, 5.16.1.3.
const (
	ioctlAdmin  = 0xc0484e41 // NVME_IOCTL_ADMIN_CMD
	getLogPage  = 0x02
	healthLog   = 0x02
	healthBytes = 512
	everywhere  = 0xffffffff // all namespaces
	kelvin      = 273
)

// adminCommand is struct nvme_admin_cmd.
type adminCommand struct {
	opcode, flags       uint8
	_                   uint16
	namespace           uint32
	_, _                uint32
	metadata            uint64
	address             uint64
	metadataLen, length uint32
	dword10             uint32
	_                   [5]uint32
	timeoutMillis       uint32
	_                   uint32
}

func readNVMe(path string, h *v1.DiskHealth) error {
	f, err := open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	log, err := nvmeHealth(f)
	if err != nil {
		return err
	}
	h.Asleep = false
	return parseNVMe(log, h)
}

func nvmeHealth(f *os.File) ([]byte, error) {
	log := make([]byte, healthBytes)
	var pin runtime.Pinner
	pin.Pin(&log[0])
	defer pin.Unpin()
	cmd := adminCommand{
		opcode: getLogPage, namespace: everywhere, length: healthBytes,
		address: uint64(uintptr(unsafe.Pointer(&log[0]))),
		dword10: healthLog | (healthBytes/4-1)<<16, timeoutMillis: uint32(questionMax.Milliseconds()),
	}
	status, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ioctlAdmin, uintptr(unsafe.Pointer(&cmd)))
	if errno != 0 {
		return nil, errno
	}
	if status != 0 {
		return nil, fmt.Errorf("refused with status %#x", status)
	}
	return log, nil
}

// warnings of the first byte, by bit.
var warnings = []string{
	0: "its spare blocks run out", 1: "it is too hot or too cold", 2: "its media are no longer reliable",
	3: "it takes no more writes", 4: "its backup of memory fails", 5: "its persistent memory fails",
}

const hot = 1 // passes, and is no failure

// parseNVMe reads the log page "SMART / Health Information".
func parseNVMe(log []byte, h *v1.DiskHealth) error {
	if len(log) != healthBytes {
		return fmt.Errorf("a health log of %d bytes, want %d", len(log), healthBytes)
	}
	le := binary.LittleEndian
	h.Celsius = 0
	if t := le.Uint16(log[1:]); t != 0 {
		h.Celsius = int32(t) - kelvin
	}
	spare, least, used := log[3], log[4], log[5]
	h.UsedPercent = proto.Uint32(uint32(used))
	h.PowerOnHours = le.Uint64(log[128:])
	h.MediaErrors = le.Uint64(log[160:])
	var failing, worn []string
	for bit, text := range warnings {
		switch {
		case log[0]>>bit&1 == 0:
		case bit == hot:
			worn = append(worn, text)
		default:
			failing = append(failing, text)
		}
	}
	if spare < least && log[0]&1 == 0 {
		failing = append(failing, warnings[0])
	}
	if used >= usedWarn {
		worn = append(worn, fmt.Sprintf("%d %% of its life is used up", used))
	}
	if h.MediaErrors > 0 {
		worn = append(worn, count(h.MediaErrors, "error")+" of its media")
	}
	judge(h, failing, worn)
	return nil
}
