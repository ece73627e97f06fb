// Package slot knows the two system slots: which one runs, how its content is
// verified, and how the boot loader counts tries of its entry. It never sets the
// loader's default entry: that would boot an exhausted slot for ever.
//
// A slot's entry on the ESP goes this way:
//
//	none ── Activate ──► counted (on trial) ── Bless ──► good
//	  ▲                      │     ▲                       │ │
//	  │                      │     └── Prefer: boots next ─┘ │
//	  └─ Condemn, or Tidy once its tries are used up         │
//	  └─ Forget, before the slot is written ─────────────────┘
//
// Arguments of the kernel are tried the same way: the slot has a second, counted entry
// for a start with them (SetArguments), and the good one stays until that was blessed.
//
// Whatever is cut, the other slot's good entry stays as it is. What Prefer boots is
// counted, too: a system that once worked may not any more.
package slot

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
)

// Order is the sequence in which slots are tried: the one that the loader says it
// started, then the one that the kernel command line names, then the rest.
func Order(entry, hint string) []string {
	var out []string
	add := func(name string) {
		for _, have := range out {
			if have == name {
				return
			}
		}
		out = append(out, name)
	}
	for _, name := range []string{ofEntry(entry), hint, disk.SlotA, disk.SlotB} {
		if name == disk.SlotA || name == disk.SlotB {
			add(name)
		}
	}
	return out
}

// countPath turns the loader's "\loader\entries\x+2-1.conf" into a path below the
// ESP. What leads out of the ESP is refused.
func countPath(text string) (string, error) {
	file := strings.TrimPrefix(strings.ReplaceAll(text, `\`, "/"), "/")
	if !filepath.IsLocal(file) {
		return "", fmt.Errorf("loader's boot count path %q: %w", text, errdefs.ErrInvalidArgument)
	}
	return file, nil
}
