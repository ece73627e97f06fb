package nettest

import (
	"encoding/binary"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// NTP is a time server (RFC 5905) whose clock is ahead of this machine's by as much as
// it is told.
type NTP struct {
	ahead atomic.Int64
	asked atomic.Int64
}

// Set has the clock ahead by so much from now on.
func (n *NTP) Set(ahead time.Duration) { n.ahead.Store(int64(ahead)) }

// Now is what it tells.
func (n *NTP) Now() time.Time { return time.Now().Add(time.Duration(n.ahead.Load())) }

// Asked counts the questions.
func (n *NTP) Asked() int64 { return n.asked.Load() }

// Serve answers at an address, "192.0.2.1:123", until the test ends, and gives where.
func (n *NTP) Serve(t testing.TB, address string) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", address) //nolint:noctx // it opens at once
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		packet := make([]byte, 512)
		for {
			size, peer, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			if size >= ntpBytes {
				n.asked.Add(1)
				_, _ = conn.WriteTo(n.answer(packet), peer)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return conn.LocalAddr().String()
}

const (
	ntpBytes = 48
	ntpEpoch = 2_208_988_800 // seconds from 1900 to 1970
)

// answer is version 4, mode server, stratum 2, of a clock that was set just now.
func (n *NTP) answer(question []byte) []byte {
	now := stamp64(n.Now())
	b := make([]byte, ntpBytes)
	b[0], b[1], b[2], b[3] = 4<<3|4, 2, question[2], 0xec // a precision of 2^-20 s
	copy(b[12:], "TEST")
	binary.BigEndian.PutUint64(b[16:], now)
	copy(b[24:32], question[40:48])
	binary.BigEndian.PutUint64(b[32:], now)
	binary.BigEndian.PutUint64(b[40:], now)
	return b
}

func stamp64(t time.Time) uint64 {
	fraction := uint64(t.Nanosecond()) << 32 / uint64(time.Second)
	return uint64(t.Unix()+ntpEpoch)<<32 | fraction //nolint:gosec // after 1900
}
