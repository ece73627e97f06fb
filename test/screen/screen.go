// Package screen reads what a text console shows in a picture of it, without knowing
// its font: text is found where its letters are drawn alike, and others differently.
package screen

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

const (
	sideMax = 8192 // pixels
	blank   = 0    // the shape of a cell with one colour
)

// cells are the sizes of letters that the kernel draws, in pixels.
var cells = [][2]int{{8, 16}, {16, 32}}

// Picture is what a monitor shows.
type Picture struct {
	width, height int
	pixels        []byte // three a pixel
}

// ReadPPM reads a picture of the form P6, as QEMU writes it.
func ReadPPM(r io.Reader) (*Picture, error) {
	in := bufio.NewReader(r)
	var p Picture
	var magic string
	var most int
	if _, err := fmt.Fscan(in, &magic, &p.width, &p.height, &most); err != nil {
		return nil, fmt.Errorf("read the picture's size: %w", err)
	}
	if magic != "P6" || most != 255 || p.width < 1 || p.height < 1 || p.width > sideMax || p.height > sideMax {
		return nil, fmt.Errorf("a picture of form %q, %d by %d", magic, p.width, p.height)
	}
	if _, err := in.ReadByte(); err != nil { // one space ends the header
		return nil, err
	}
	p.pixels = make([]byte, p.width*p.height*3)
	if _, err := io.ReadFull(in, p.pixels); err != nil {
		return nil, fmt.Errorf("read the picture: %w", err)
	}
	return &p, nil
}

// Shows tells what stands in the way of all texts being on the screen, each in one row.
func (p *Picture) Shows(texts ...string) error {
	texts = slices.SortedFunc(slices.Values(texts), func(a, b string) int { return len(b) - len(a) })
	for _, size := range cells {
		rows := p.shapes(size[0], size[1])
		if find(rows, texts, map[rune]int{' ': blank}) {
			return nil
		}
	}
	if !p.drawn() {
		return errors.New("the screen is blank")
	}
	return fmt.Errorf("the screen of %d by %d does not show %q", p.width, p.height, texts)
}

func (p *Picture) drawn() bool {
	return slices.ContainsFunc(p.pixels, func(b byte) bool { return b != p.pixels[0] })
}

// shapes numbers what is drawn in each cell, whatever its colours.
func (p *Picture) shapes(width, height int) (rows [][]int) {
	known := map[string]int{strings.Repeat(".", width*height): blank}
	for y := 0; y+height <= p.height; y += height {
		var row []int
		for x := 0; x+width <= p.width; x += width {
			shape := p.shape(x, y, width, height)
			if _, ok := known[shape]; !ok {
				known[shape] = len(known)
			}
			row = append(row, known[shape])
		}
		rows = append(rows, row)
	}
	return rows
}

// shape tells the pixels of the letter from those of the ground, which are more.
func (p *Picture) shape(x, y, width, height int) string {
	seen := map[[3]byte]int{}
	var all [][3]byte
	for dy := range height {
		for dx := range width {
			pixel := [3]byte(p.pixels[((y+dy)*p.width+x+dx)*3:])
			seen[pixel]++
			all = append(all, pixel)
		}
	}
	var ground [3]byte
	for pixel, n := range seen {
		if n > seen[ground] {
			ground = pixel
		}
	}
	var b strings.Builder
	for _, pixel := range all {
		if pixel == ground {
			b.WriteByte('.')
		} else {
			b.WriteByte('#')
		}
	}
	return b.String()
}

// find looks for a place for each text, so that each letter has one shape everywhere
// and no two have the same.
func find(rows [][]int, texts []string, font map[rune]int) bool {
	if len(texts) == 0 {
		return true
	}
	for _, row := range rows {
		for at := 0; at+len(texts[0]) <= len(row); at++ {
			if learnt := fits(row[at:], texts[0], font); learnt != nil && find(rows, texts[1:], learnt) {
				return true
			}
		}
	}
	return false
}

// fits gives the font as a text at this place has it; nil when it can't be there.
func fits(row []int, text string, font map[rune]int) map[rune]int {
	learnt := maps.Clone(font)
	letters := map[int]rune{}
	for r, shape := range learnt {
		letters[shape] = r
	}
	for i, r := range text {
		shape, known := learnt[r]
		letter, taken := letters[row[i]]
		if known && shape != row[i] || taken && letter != r {
			return nil
		}
		learnt[r], letters[row[i]] = row[i], r
	}
	return learnt
}
