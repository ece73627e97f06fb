// Package version holds what the build stamps into every program.
package version

import (
	"strconv"
	"time"
)

// Set by the linker: -X capsule/internal/version.Version=… and BuildUnix=…
var (
	Version   = "0.0.0-dev"
	BuildUnix = "0"
)

// Header of every answer of a capsule holds its version, by which a client tells
// whether its own fits.
const Header = "capsule-version"

// BuildTime is the time of the built commit. A capsule's clock is never before it.
func BuildTime() time.Time {
	s, err := strconv.ParseInt(BuildUnix, 10, 64)
	if err != nil {
		return time.Unix(0, 0)
	}
	return time.Unix(s, 0)
}
