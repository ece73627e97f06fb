package clock

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/beevik/ntp"
)

func TestFloor(t *testing.T) {
	build := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct{ saved, want time.Time }{
		"nothing saved":       {time.Time{}, build},
		"saved before update": {build.Add(-time.Hour), build},
		"saved later":         {build.Add(time.Hour), build.Add(time.Hour)},
		"saved nonsense":      {build.Add(100 * 365 * 24 * time.Hour), build},
	} {
		if got := floor(build, tc.saved); !got.Equal(tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestAbsurd(t *testing.T) {
	build := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		build, now time.Time
		want       bool
	}{
		"year 70 read as 2070": {build, time.Date(2070, 1, 1, 0, 0, 0, 0, time.UTC), true},
		"ten years of service": {build, build.AddDate(10, 0, 0), false},
		"before the build":     {build, time.Unix(0, 0), false},
		"build without a time": {time.Unix(0, 0), build, false},
	} {
		if got := absurd(tc.build, tc.now); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestSave(t *testing.T) {
	file := filepath.Join(t.TempDir(), "clock")
	if got := readSaved(file); !got.IsZero() {
		t.Errorf("without a file: %v", got)
	}
	if err := Save(file); err != nil {
		t.Fatal(err)
	}
	if got := readSaved(file); time.Since(got) > time.Minute {
		t.Errorf("saved %v", got)
	}
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := readSaved(file); !got.IsZero() {
		t.Errorf("from rubbish: %v", got)
	}
}

func TestCheck(t *testing.T) {
	now := time.Now()
	const year = 365 * 24 * time.Hour
	for name, c := range map[string]struct {
		build             time.Time
		offset, uncertain time.Duration
		ok                bool
	}{
		"good":                 {now.Add(-time.Hour), 0, 0, true},
		"from 1970":            {now.Add(-time.Hour), 10 * year, 0, true},
		"ten years of service": {now.Add(-10 * year), 0, 0, true},
		"build without a time": {time.Unix(0, 0), 0, 0, true},
		"before the build":     {now.Add(time.Hour), 0, 0, false},
		"set before the build": {now.Add(-time.Hour), -2 * time.Hour, 0, false},
		"absurdly far ahead":   {now.Add(-time.Hour), aheadMax, 0, false},
		"uncertain":            {now.Add(-time.Hour), 0, time.Minute, false},
	} {
		r := &ntp.Response{Time: now, ClockOffset: c.offset, ReferenceTime: now.Add(-time.Second), Stratum: 2, Leap: ntp.LeapNoWarning, RootDistance: c.uncertain}
		if err := check(r, c.build); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestServers(t *testing.T) {
	if got := servers(func() []string { return []string{"a"} }); got[0] != "a" {
		t.Error(got)
	}
	if got := servers(func() []string { return nil }); got[0] != DefaultServers[0] {
		t.Error(got)
	}
}

// serveTime answers NTP requests with a clock that is this far ahead.
func serveTime(t *testing.T, ahead time.Duration) string {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		b := make([]byte, 512)
		for {
			n, from, err := conn.ReadFromUDP(b)
			if err != nil {
				return
			}
			if n < 48 {
				continue
			}
			answer := make([]byte, 48)
			answer[0], answer[1], answer[3] = 4<<3|4, 1, 0xec // version 4, server, stratum 1
			copy(answer[24:32], b[40:48])                     // origin: the client's transmit time
			for _, at := range []int{16, 32, 40} {
				putTime(answer[at:], time.Now().Add(ahead))
			}
			_, _ = conn.WriteToUDP(answer, from)
		}
	}()
	return conn.LocalAddr().String()
}

// putTime writes seconds since 1900 and their fraction (RFC 5905).
func putTime(b []byte, t time.Time) {
	binary.BigEndian.PutUint32(b, uint32(t.Unix()+2208988800))
	binary.BigEndian.PutUint32(b[4:], uint32(uint64(t.Nanosecond())<<32/uint64(time.Second)))
}

func TestRun(t *testing.T) {
	dead := "127.0.0.1:1" // refuses at once
	good := serveTime(t, time.Hour)
	saved := filepath.Join(t.TempDir(), "clock")
	ctx, cancel := context.WithCancel(t.Context())
	var offset, step time.Duration
	err := Run(ctx, Options{
		Servers: func() []string { return []string{dead, good} },
		OnSync:  cancel,
		OnStep:  func(d time.Duration, _ string) { step = d },
		Saved:   saved,
		adjust:  func(d time.Duration) error { offset = d; return nil },
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if (offset-time.Hour).Abs() > time.Second || step != offset {
		t.Errorf("corrected by %v, told of %v, want an hour", offset, step)
	}
	if s := Now(); !s.Synced || s.Server != good || s.Err != "" {
		t.Errorf("%+v", s)
	}
	if readSaved(saved).IsZero() {
		t.Error("the time wasn't saved")
	}
}

func TestQueryNamesAllServersThatFailed(t *testing.T) {
	_, _, err := query(t.Context(), []string{"127.0.0.1:1", "127.0.0.1:2"})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") || !strings.Contains(err.Error(), "127.0.0.1:2") {
		t.Error(err)
	}
}
