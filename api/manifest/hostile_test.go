package manifest

import (
	"strings"
	"testing"
	"time"
)

// Text made to take up time or memory is refused within bounds of both.
func TestHostileText(t *testing.T) {
	for name, source := range map[string]string{
		"deep lists":      base + "env: " + strings.Repeat("[", MaxBytes/2),
		"deep mappings":   base + "env: " + strings.Repeat("{a: ", MaxBytes/5),
		"many documents":  strings.Repeat(base+"---\n", MaxBytes/60),
		"many keys":       base + strings.Repeat("x: y\n", MaxBytes/6),
		"one long scalar": base + "user: " + strings.Repeat("x", MaxBytes-100),
		"many aliases":    base + "env: &a {A: b}\nargs: [" + strings.Repeat("*a,", MaxBytes/4) + "]",
		"long list":       base + "args: [" + strings.Repeat("a,", MaxBytes/3) + "]",
		"many ports":      base + "ports: [" + strings.Repeat("1:1,", MaxBytes/5) + "]",
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			if objs, err := Decode("f", strings.NewReader(source)); err == nil {
				t.Errorf("accepted %d objects", len(objs))
			}
			t.Logf("%v for %d bytes", time.Since(begin), len(source))
		})
	}
}
