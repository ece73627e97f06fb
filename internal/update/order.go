package update

import (
	"cmp"
	"regexp"
	"strconv"

	"golang.org/x/mod/semver"
)

// described is a version as `git describe --tags --dirty` gives it: a tag, and how
// many commits lie between it and the build.
var described = regexp.MustCompile(`^v?(\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+?)??(?:\+[0-9A-Za-z.-]+)?)(?:-(\d+)-g[0-9a-f]{4,40})?(?:-dirty)?$`)

// A release is the place of a version in the order of versions.
type release struct {
	tag     string // canonical semantic version
	commits int    // after the tag
}

// parseRelease takes a version apart, when it has an order of its own.
func parseRelease(version string) (release, bool) {
	m := described.FindStringSubmatch(version)
	if m == nil || !semver.IsValid("v"+m[1]) {
		return release{}, false
	}
	commits, err := strconv.Atoi("0" + m[2])
	return release{tag: "v" + m[1], commits: commits}, err == nil
}

func (r release) compare(other release) int {
	return cmp.Or(semver.Compare(r.tag, other.tag), cmp.Compare(r.commits, other.commits))
}

// older says whether a build comes before another: by their versions when both have
// an order, else, and for two builds of one commit, by the time of the commit.
func older(version string, built int64, than string, thanBuilt int64) bool {
	a, okA := parseRelease(version)
	b, okB := parseRelease(than)
	order := 0
	if okA && okB {
		order = a.compare(b)
	}
	return cmp.Or(order, cmp.Compare(built, thanBuilt)) < 0
}

// Follows says whether a system of version may be replaced by one that can follow
// oldest or newer. A version without order is a development build: whoever makes
// those knows what fits.
func Follows(version, oldest string) bool {
	if oldest == "" || version == oldest {
		return true
	}
	a, okA := parseRelease(version)
	b, okB := parseRelease(oldest)
	return !okA || !okB || a.compare(b) >= 0
}
