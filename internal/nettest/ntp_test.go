package nettest

import (
	"testing"
	"time"

	"github.com/beevik/ntp"
)

func TestNTP(t *testing.T) {
	n := &NTP{}
	at := n.Serve(t, "127.0.0.1:0")
	for _, ahead := range []time.Duration{0, time.Hour, -26 * time.Hour, 400 * 24 * time.Hour} {
		n.Set(ahead)
		r, err := ntp.Query(at)
		if err == nil {
			err = r.Validate()
		}
		if err != nil {
			t.Fatalf("%v ahead: %v", ahead, err)
		}
		if off := (r.ClockOffset - ahead).Abs(); off > time.Second {
			t.Errorf("%v ahead: it says %v", ahead, r.ClockOffset)
		}
	}
	if n.Asked() != 4 {
		t.Errorf("asked %d times", n.Asked())
	}
}
