package update

import "testing"

func TestOlder(t *testing.T) {
	for _, tc := range []struct {
		a      string
		builtA int64
		b      string
		builtB int64
		want   bool
	}{
		{"v1.2.3", 9, "v1.10.0", 1, true},
		{"v1.10.0", 1, "v1.2.3", 9, false},
		{"1.2.3", 9, "v1.2.4", 1, true},
		{"v1.2.0-rc1", 9, "v1.2.0", 1, true},
		{"v1.2.0", 1, "v1.2.0-rc1", 9, false},
		// Commits after a tag come after it, though semver alone says before.
		{"v1.2.3", 9, "v1.2.3-5-g0a1b2c3", 1, true},
		{"v1.2.3-5-g0a1b2c3", 1, "v1.2.3", 9, false},
		{"v1.2.3-5-g0a1b2c3", 9, "v1.2.3-12-gffffff1-dirty", 1, true},
		{"v1.2.3-rc1-5-g0a1b2c3", 9, "v1.2.3", 1, true},
		{"v1.2.3-rc1-5-g0a1b2c3", 1, "v1.2.3-rc1", 9, false},
		// One commit, built twice.
		{"v1.2.3", 1, "v1.2.3-dirty", 2, true},
		{"v1.2.3", 2, "v1.2.3", 2, false},
		// A bare hash has no order, even when it looks like a number.
		{"1234567", 2, "v1.2.3", 1, false},
		{"1234567", 1, "a0bc083", 2, true},
		{"v1.2.3", 1, "a0bc083", 2, true},
	} {
		if got := older(tc.a, tc.builtA, tc.b, tc.builtB); got != tc.want {
			t.Errorf("older(%s of %d, %s of %d) = %v", tc.a, tc.builtA, tc.b, tc.builtB, got)
		}
	}
}

func TestFollows(t *testing.T) {
	for _, tc := range []struct {
		version, oldest string
		want            bool
	}{
		{"v1.2.3", "", true},
		{"v1.2.3", "v1.2.3", true},
		{"v1.2.3", "v1.2.0", true},
		{"v1.2.3", "v1.3.0", false},
		{"v1.2.3-4-gabcdef0", "v1.2.4", false},
		{"a0bc083", "v1.3.0", true},
		{"a0bc083", "a0bc083", true},
	} {
		if got := Follows(tc.version, tc.oldest); got != tc.want {
			t.Errorf("Follows(%s, %s) = %v", tc.version, tc.oldest, got)
		}
	}
}
