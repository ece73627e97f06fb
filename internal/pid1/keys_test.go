package pid1

import (
	"testing"
	"time"
)

func TestKeys(t *testing.T) {
	const ms = time.Millisecond
	type result struct{ confirms, asks bool }
	for name, tc := range map[string]struct {
		at   []time.Duration
		want []result
	}{
		"once":                {[]time.Duration{100 * ms}, []result{{false, true}}},
		"twice":               {[]time.Duration{time.Minute, time.Minute + time.Second}, []result{{false, true}, {true, false}}},
		"too late, then soon": {[]time.Duration{time.Minute, 2 * time.Minute, 2*time.Minute + time.Second}, []result{{false, true}, {false, true}, {true, false}}},
		"held down": {
			[]time.Duration{time.Minute, time.Minute + 250*ms, time.Minute + 283*ms, time.Minute + 316*ms, time.Minute + 349*ms, time.Minute + 682*ms},
			[]result{{false, true}, {}, {}, {}, {}, {}},
		},
	} {
		var k keys
		for i, at := range tc.at {
			if confirms, asks := k.press(at); (result{confirms, asks}) != tc.want[i] {
				t.Errorf("%s: press %d: confirms %v, asks %v", name, i, confirms, asks)
			}
		}
	}
}
