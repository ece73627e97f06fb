package smart

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	v1 "capsule/api/capsule/v1"
)

// Of scsi/sg.h, SAT-4 12.2.2 (ATA PASS-THROUGH) and ACS-3.
const (
	ioctlSG      = 0x2285
	fromDevice   = -3 // SG_DXFER_FROM_DEV
	noTransfer   = -1 // SG_DXFER_NONE
	passThrough  = 0x85
	checkPower   = 0xe5
	identify     = 0xec
	smartCommand = 0xb0
	readData     = 0xd0 // features of smartCommand
	returnStatus = 0xda
	sectorBytes  = 512
	senseBytes   = 32
)

// sgHeader is struct sg_io_hdr.
type sgHeader struct {
	id             int32
	direction      int32
	commandLen     uint8
	senseMax       uint8
	_              uint16
	length         uint32
	data           uintptr
	command        uintptr
	sense          uintptr
	timeoutMillis  uint32
	flags          uint32
	packID         int32
	user           uintptr
	status         uint8
	masked, msg    uint8
	senseWritten   uint8
	hostStatus     uint16
	driverStatus   uint16
	residual       int32
	durationMillis uint32
	info           uint32
}

// registers are those that a command without data answers in.
type registers struct{ count, lbaMid, lbaHigh byte }

func readATA(path string, h *v1.DiskHealth) error {
	f, err := open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	power, _, err := ask(f, checkPower, 0, false)
	if err != nil {
		return err
	}
	if power.count <= 0x01 { // PM2 standby, or standby_y
		asleep(h)
		return nil
	}
	h.Asleep = false
	_, who, err := ask(f, identify, 0, true)
	if err != nil {
		return err
	}
	if !hasSMART(who) {
		return errors.New("it has no SMART, or SMART is off")
	}
	status, _, err := ask(f, smartCommand, returnStatus, false)
	if err != nil {
		return err
	}
	_, data, err := ask(f, smartCommand, readData, true)
	if err != nil {
		return err
	}
	return parseATA(data, status, h)
}

// hasSMART reads words 82 and 85 of what a disk identifies itself by.
func hasSMART(who []byte) bool {
	return len(who) == sectorBytes && who[82*2]&1 == 1 && who[85*2]&1 == 1
}

// ask gives a command to a disk through the kernel's SCSI layer.
func ask(f *os.File, command, feature byte, wantData bool) (registers, []byte, error) {
	cdb := passThroughCommand(command, feature, wantData)
	sense := make([]byte, senseBytes)
	data := make([]byte, sectorBytes)
	var pin runtime.Pinner
	defer pin.Unpin()
	for _, p := range []*byte{&cdb[0], &sense[0], &data[0]} {
		pin.Pin(p)
	}
	h := sgHeader{
		id: 'S', direction: noTransfer, commandLen: uint8(len(cdb)), senseMax: senseBytes,
		command: uintptr(unsafe.Pointer(&cdb[0])), sense: uintptr(unsafe.Pointer(&sense[0])), timeoutMillis: uint32(questionMax.Milliseconds()),
	}
	if wantData {
		h.direction, h.length, h.data = fromDevice, sectorBytes, uintptr(unsafe.Pointer(&data[0]))
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ioctlSG, uintptr(unsafe.Pointer(&h))); errno != 0 {
		return registers{}, nil, errno
	}
	switch {
	case h.hostStatus != 0:
		return registers{}, nil, fmt.Errorf("no answer to command %#x: status %d of the port", command, h.hostStatus)
	case wantData && h.status != 0:
		return registers{}, nil, fmt.Errorf("command %#x was refused", command)
	case wantData:
		return registers{}, data, nil
	}
	r, err := parseSense(sense[:min(int(h.senseWritten), senseBytes)])
	return r, nil, err
}

// passThroughCommand is one of 16 bytes: with data by PIO, without it with the wish to
// have the registers back.
func passThroughCommand(command, feature byte, wantData bool) []byte {
	cdb := make([]byte, 16)
	cdb[0], cdb[14] = passThrough, command
	if wantData {
		cdb[1], cdb[2], cdb[6] = 4<<1, 0x0e, 1
	} else {
		cdb[1], cdb[2] = 3<<1, 0x20
	}
	if command == smartCommand {
		cdb[4], cdb[10], cdb[12] = feature, 0x4f, 0xc2
	}
	return cdb
}

// parseSense takes the registers out of sense data, of the descriptor format or the
// fixed one, which the kernel's ATA layer can both write.
func parseSense(sense []byte) (registers, error) {
	if len(sense) > 0 {
		switch sense[0] & 0x7f {
		case 0x72, 0x73:
			if len(sense) >= 22 && sense[8] == 0x09 && sense[9] >= 12 {
				return registers{count: sense[8+5], lbaMid: sense[8+9], lbaHigh: sense[8+11]}, nil
			}
		case 0x70, 0x71:
			if len(sense) >= 12 {
				return registers{count: sense[6], lbaMid: sense[10], lbaHigh: sense[11]}, nil
			}
		}
	}
	return registers{}, errors.New("it does not tell the registers of its answer")
}

// Attributes that mean the same with all makers who have them.
const (
	reallocated   = 5
	powerOnHours  = 9
	airflow       = 190 // degrees too
	degrees       = 194
	pending       = 197
	uncorrectable = 198

	attributesAt    = 2
	attributeBytes  = 12
	attributesCount = 30
)

// parseATA reads the page of attributes, and the disk's own verdict of the status.
func parseATA(page []byte, status registers, h *v1.DiskHealth) error {
	if len(page) != sectorBytes {
		return fmt.Errorf("a page of attributes of %d bytes, want %d", len(page), sectorBytes)
	}
	sum := byte(0)
	for _, b := range page {
		sum += b
	}
	if sum != 0 {
		return errors.New("the checksum of its attributes is wrong")
	}
	h.Celsius, h.ReallocatedSectors, h.PendingSectors, h.PowerOnHours = 0, 0, 0, 0
	var lost uint64
	for i := range attributesCount {
		a := page[attributesAt+i*attributeBytes:][:attributeBytes]
		raw := binary.LittleEndian.Uint32(a[5:]) // makers put other things above
		switch a[0] {
		case reallocated:
			h.ReallocatedSectors = uint64(raw & 0xffff)
		case powerOnHours:
			h.PowerOnHours = uint64(raw & 0xffffff)
		case degrees:
			h.Celsius = int32(a[5])
		case airflow:
			if h.Celsius == 0 {
				h.Celsius = int32(a[5])
			}
		case pending:
			h.PendingSectors = uint64(raw)
		case uncorrectable:
			lost = uint64(raw)
		}
	}
	var failing, worn []string
	if status.lbaMid == 0xf4 && status.lbaHigh == 0x2c {
		failing = append(failing, "it says itself that it fails soon")
	}
	if n := max(h.PendingSectors, lost); n > 0 {
		worn = append(worn, count(n, "sector")+" can't be read")
	}
	if h.ReallocatedSectors > 0 {
		worn = append(worn, count(h.ReallocatedSectors, "sector")+" had to be replaced")
	}
	judge(h, failing, worn)
	return nil
}
