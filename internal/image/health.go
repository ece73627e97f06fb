package image

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// healthcheck is an image's HEALTHCHECK. Images of both forms carry it in the same
// place, though the OCI specification doesn't know it. Times are in nanoseconds;
// zero is the default. Source: moby's api/types/container.HealthConfig.
type healthcheck struct {
	Test          []string
	Interval      time.Duration
	Timeout       time.Duration
	StartPeriod   time.Duration
	StartInterval time.Duration
	Retries       int
}

// healthTimeout is docker's default, which images are made for.
const healthTimeout = 30 * time.Second

// health gives the image's check as a manifest would say it, nil without one; or
// says why it can't be made.
func (c configuration) health() (check *v1.Health, warning string) {
	h := c.healthcheck
	if h == nil || len(h.Test) == 0 || h.Test[0] == "NONE" {
		return nil, ""
	}
	words := h.Test[1:]
	switch form := h.Test[0]; {
	case form != "CMD" && form != "CMD-SHELL":
		return nil, fmt.Sprintf("HEALTHCHECK of the image has the unknown form %q and is not made", form)
	case len(words) == 0 || words[0] == "":
		return nil, "HEALTHCHECK of the image names no program and is not made"
	case form == "CMD-SHELL":
		shell := c.shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		words = slices.Concat(shell, words)
	}
	check = &v1.Health{
		Exec:          words,
		Interval:      within(h.Interval, manifest.HealthInterval, manifest.HealthIntervalMin, manifest.HealthIntervalMax),
		Timeout:       within(h.Timeout, healthTimeout, manifest.HealthTimeoutMin, manifest.HealthTimeoutMax),
		StartPeriod:   within(h.StartPeriod, 0, 0, manifest.HealthPeriodMax),
		StartInterval: within(h.StartInterval, manifest.HealthStartInterval, manifest.HealthIntervalMin, manifest.HealthIntervalMax),
		Retries:       manifest.HealthRetries,
	}
	if h.Retries > 0 {
		check.Retries = uint32(min(h.Retries, manifest.HealthRetriesMax))
	}
	return check, ""
}

// within brings a time of the image, zero or less for the default, into our bounds.
func within(t, absent, least, most time.Duration) *durationpb.Duration {
	if t <= 0 {
		t = absent
	}
	return durationpb.New(min(max(t, least), most))
}
