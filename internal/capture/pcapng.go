package capture

import (
	"encoding/binary"
	"time"
)

// Blocks and options of pcapng (draft-ietf-opsawg-pcapng), all in little endian.
const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6
	byteOrderMagic  = 0x1a2b3c4d

	optionEnd         = 0
	optionName        = 2 // of an interface
	optionResolution  = 9 // of its times: 9 is nanoseconds
	optionFlags       = 2 // of a packet
	optionApplication = 4 // that wrote the section
	optionReceived    = 4 // of statistics
	optionDropped     = 5 // as above
	linkEthernet      = 1 // LINKTYPE_ETHERNET
	inbound, outbound = 1, 2
)

// block is one that grows to its end.
type block []byte

func newBlock(kind uint32) block {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, kind), 0)
}

func (b block) u16(v uint16) block { return binary.LittleEndian.AppendUint16(b, v) }
func (b block) u32(v uint32) block { return binary.LittleEndian.AppendUint32(b, v) }
func (b block) u64(v uint64) block { return binary.LittleEndian.AppendUint64(b, v) }

// padded adds data up to the next multiple of four bytes.
func (b block) padded(data []byte) block {
	b = append(b, data...)
	return append(b, make([]byte, -len(data)&3)...)
}

func (b block) option(code uint16, value []byte) block {
	return b.u16(code).u16(uint16(len(value))).padded(value) //nolint:gosec // short
}

// end closes the options and the block.
func (b block) end() []byte {
	b = b.u16(optionEnd).u16(0)
	length := uint32(len(b) + 4) //nolint:gosec // at most a packet
	binary.LittleEndian.PutUint32(b[4:], length)
	return b.u32(length)
}

func section(application string) []byte {
	b := newBlock(blockSection).u32(byteOrderMagic).u16(1).u16(0)
	b = b.u64(^uint64(0)) // its length is not known
	return b.option(optionApplication, []byte(application)).end()
}

func interfaceBlock(name string, packetBytes uint32) []byte {
	b := newBlock(blockInterface).u16(linkEthernet).u16(0).u32(packetBytes)
	return b.option(optionName, []byte(name)).option(optionResolution, []byte{9}).end()
}

// packetBlock is of a packet that had length bytes on the link.
func packetBlock(link uint32, at time.Time, data []byte, length int, out bool) []byte {
	ns := uint64(at.UnixNano()) //nolint:gosec // after 1970
	b := newBlock(blockPacket).u32(link).u32(uint32(ns >> 32)).u32(uint32(ns))
	b = b.u32(uint32(len(data))).u32(uint32(length)).padded(data) //nolint:gosec // of a packet
	flags := uint32(inbound)
	if out {
		flags = outbound
	}
	return b.option(optionFlags, binary.LittleEndian.AppendUint32(nil, flags)).end()
}

func statisticsBlock(link uint32, at time.Time, received, dropped uint64) []byte {
	ns := uint64(at.UnixNano()) //nolint:gosec // after 1970
	b := newBlock(blockStatistics).u32(link).u32(uint32(ns >> 32)).u32(uint32(ns))
	b = b.option(optionReceived, binary.LittleEndian.AppendUint64(nil, received))
	return b.option(optionDropped, binary.LittleEndian.AppendUint64(nil, dropped)).end()
}
