package screen

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// draw makes a picture of lines, with a font that it makes up.
func draw(width, height int, lines ...string) []byte {
	const columns, rows = 80, 25
	pixels := make([]byte, columns*width*rows*height*3)
	for y, line := range lines {
		for x, r := range line {
			font := rand.New(rand.NewPCG(uint64(r), 1))
			for dy := range height {
				for dx := range width {
					if r != ' ' && font.IntN(10) < 3 {
						at := ((y*height+dy)*columns*width + x*width + dx) * 3
						copy(pixels[at:], []byte{byte(x), 200, byte(y)}) // of any colour
					}
				}
			}
		}
	}
	return append(fmt.Appendf(nil, "P6\n%d %d\n255\n", columns*width, rows*height), pixels...)
}

func TestShows(t *testing.T) {
	lines := []string{"", "  capsule-a3f2", "  claim     unclaimed", "            capsulectl claim capsule-a3f2"}
	for _, size := range cells {
		p, err := ReadPPM(bytes.NewReader(draw(size[0], size[1], lines...)))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			texts []string
			shown bool
		}{
			{[]string{"capsule-a3f2", "  claim     unclaimed"}, true},
			{[]string{"capsulectl claim capsule-a3f2", "unclaimed", "claim"}, true},
			{[]string{"capsulectl claim capsule-a3f2", "  claim     claimed"}, false},
			{[]string{"capsule-b3f2", "capsulectl claim capsule-a3f2"}, false}, // drawn alike, but b is a there
			{[]string{"nothing of the kind"}, false},
		} {
			if err := p.Shows(c.texts...); (err == nil) != c.shown {
				t.Errorf("%v: %q: %v", size, c.texts, err)
			}
		}
	}
	p, err := ReadPPM(bytes.NewReader(draw(8, 16)))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Shows("x"); err == nil || err.Error() != "the screen is blank" {
		t.Error(err)
	}
}

func FuzzReadPPM(f *testing.F) {
	f.Add([]byte("P6\n2 1\n255\nabcdef"))
	f.Add([]byte("P6\n99999 99999\n255\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := ReadPPM(bytes.NewReader(data)); err == nil && len(p.pixels) != p.width*p.height*3 {
			t.Error(len(p.pixels))
		}
	})
}
