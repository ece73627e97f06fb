package console

import (
	"strings"

	"rsc.io/qr"
)

const (
	qrQuiet  = 4  // modules of light around a code, as its standard wants
	qrColumn = 50 // of the screen; a claim's code has 29 columns with its margin
)

// quickCode draws a text as a QR code in half blocks, two modules a character,
// black on white whatever the terminal's colours are; nil when there is none.
func quickCode(text string) (lines []string) {
	if text == "" {
		return nil
	}
	code, err := qr.Encode(text, qr.L)
	if err != nil || qrColumn+code.Size+2*qrQuiet > screenColumns+1 {
		return nil // the text alone does
	}
	for y := -qrQuiet; y < code.Size+qrQuiet; y += 2 {
		var b strings.Builder
		b.WriteString("\x1b[30;47m")
		for x := -qrQuiet; x < code.Size+qrQuiet; x++ {
			b.WriteString(halves(code.Black(x, y), code.Black(x, y+1)))
		}
		b.WriteString("\x1b[0m")
		lines = append(lines, b.String())
	}
	return lines
}

func halves(upper, lower bool) string {
	switch {
	case upper && lower:
		return "█"
	case upper:
		return "▀"
	case lower:
		return "▄"
	}
	return " "
}
