package manifest

import (
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
)

// sizeUnits from large to small; the binary one first where both would do.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"TB", 1e12}, {"GiB", 1 << 30}, {"GB", 1e9},
	{"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"KB", 1e3}, {"B", 1},
}

var sizeText = regexp.MustCompile(`^(-?)([0-9]{1,20}(?:\.[0-9]{1,12})?) ?([A-Za-z]*)$`)

// ParseSize reads a positive number of bytes: "512MiB" (2^20), "1GB" (10^9),
// "1.5 GiB". The unit is never guessed: "10G", "10" and "10gb" are refused.
func ParseSize(s string) (int64, error) { return parseSize(s, "") }

// noLimit is what to do instead where a field may be left out.
const noLimit = "; leave the field out for no limit"

// parseSize is ParseSize with a hint for what is not above zero.
func parseSize(s, hint string) (int64, error) {
	part := sizeText.FindStringSubmatch(s)
	if part == nil {
		return 0, invalid("want a size such as \"512MiB\" or \"1GB\", found %q", clip(s))
	}
	sign, number, unit := part[1], part[2], part[3]
	factor, err := sizeFactor(s, number, unit, hint)
	if err != nil {
		return 0, err
	}
	bytes, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, invalid("want a size such as \"512MiB\" or \"1GB\", found %q", clip(s))
	}
	bytes.Mul(bytes, new(big.Rat).SetInt64(factor))
	switch {
	case sign == "-" || bytes.Sign() == 0:
		return 0, invalid("size %q must be above zero%s", s, hint)
	case !bytes.IsInt():
		return 0, invalid("size %q is not a whole number of bytes", s)
	case !bytes.Num().IsInt64():
		return 0, invalid("size %q is larger than %d bytes", s, int64(math.MaxInt64))
	}
	return bytes.Num().Int64(), nil
}

func sizeFactor(s, number, unit, hint string) (int64, error) {
	names := make([]string, 0, len(sizeUnits))
	for _, u := range sizeUnits {
		if u.name == unit {
			return u.bytes, nil
		}
		names = append(names, u.name)
	}
	zero := strings.Trim(number, "0.") == ""
	switch {
	case unit == "" && zero:
		return 0, invalid("size %q must be above zero%s", s, hint)
	case unit == "":
		return 0, invalid("size %q has no unit; write %sMB, %sMiB or another of %s", s, number, number, strings.Join(names, ", "))
	case len(unit) == 1 && strings.Contains("kmgtKMGT", unit):
		big := strings.ToUpper(unit)
		return 0, invalid("size %q may mean %s%sB or %s%siB; write the one that is meant", s, number, big, number, big)
	}
	for _, name := range names {
		if strings.EqualFold(name, unit) {
			return 0, invalid("unknown unit %q; did you mean %q?", unit, name)
		}
	}
	return 0, invalid("unknown unit %q; known are %s", clip(unit), strings.Join(names, ", "))
}

// FormatSize writes bytes exactly, in the largest unit that divides them.
func FormatSize(bytes int64) string {
	for _, u := range sizeUnits {
		if bytes%u.bytes == 0 && bytes != 0 {
			return strconv.FormatInt(bytes/u.bytes, 10) + u.name
		}
	}
	return "0B"
}

var cpusText = regexp.MustCompile(`^[0-9]{1,6}(\.[0-9]{1,3})?$`)

// parseCPUs reads processors such as "1.5" into thousandths.
func parseCPUs(s string) (int64, error) {
	if !cpusText.MatchString(s) {
		return 0, invalid("want a number of processors such as 0.5 or 2, with at most three decimals, found %q", clip(s))
	}
	whole, fraction, _ := strings.Cut(s, ".")
	n, err := strconv.ParseInt(whole+(fraction + "000")[:3], 10, 64)
	if err != nil || n == 0 {
		return 0, invalid("%q processors are out of range", s)
	}
	return n, nil
}

func formatCPUs(millis int64) string {
	s := strconv.FormatInt(millis/1000, 10)
	if rest := millis % 1000; rest != 0 {
		s += "." + strings.TrimRight(strconv.FormatInt(1000+rest, 10)[1:], "0")
	}
	return s
}
