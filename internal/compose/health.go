package compose

import (
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// timeoutDefault is Docker's, longer than ours.
const timeoutDefault = 30 * time.Second

// health maps a check. Docker tells of an unhealthy container and leaves it: so it is
// here, with onFailure none.
func (s *service) health() {
	h := s.config.HealthCheck
	if h == nil {
		return
	}
	path := s.at("healthcheck")
	if h.Disable || (len(h.Test) > 0 && h.Test[0] == "NONE") {
		s.spec.Health = &capsulev1.Health{None: true}
		return
	}
	if len(h.Test) == 0 && h.Timeout == nil && h.Interval == nil && h.StartPeriod == nil && h.StartInterval == nil && h.Retries == nil {
		return // "disable: false" alone: the image's check, there and here
	}
	if len(h.Test) < 2 {
		s.lose(path, "only times of the image's own check can't be said; it is made with its own: write the whole check")
		return
	}
	argv := []string(h.Test[1:])
	if h.Test[0] == "CMD-SHELL" {
		argv = append([]string{"/bin/sh", "-c"}, argv...)
	}
	made := &capsulev1.Health{Exec: argv, OnFailure: manifest.OnFailureNone}
	s.healthTimes(made, h, path)
	s.try(s.spec, path, func(w *capsulev1.WorkloadSpec) { w.Health = made })
}

func (s *service) healthTimes(made *capsulev1.Health, h *types.HealthCheckConfig, path string) {
	given := func(t *types.Duration) bool { return t != nil && *t != 0 } // 0 is the default there
	timeout := timeoutDefault
	if given(h.Timeout) {
		timeout = time.Duration(*h.Timeout)
	}
	made.Timeout = s.within(path+".timeout", timeout, manifest.HealthTimeoutMin, manifest.HealthTimeoutMax)
	if given(h.Interval) {
		made.Interval = s.within(path+".interval", time.Duration(*h.Interval), manifest.HealthIntervalMin, manifest.HealthIntervalMax)
	}
	if given(h.StartPeriod) {
		made.StartPeriod = s.within(path+".start_period", time.Duration(*h.StartPeriod), 0, manifest.HealthPeriodMax)
	}
	if given(h.StartInterval) {
		made.StartInterval = s.within(path+".start_interval", time.Duration(*h.StartInterval), manifest.HealthIntervalMin, manifest.HealthIntervalMax)
	}
	if h.Retries != nil && *h.Retries != 0 {
		made.Retries = uint32(min(*h.Retries, manifest.HealthRetriesMax)) //nolint:gosec // at most 100
		if *h.Retries > manifest.HealthRetriesMax {
			s.lose(path+".retries", "is %d, at most %d here", *h.Retries, manifest.HealthRetriesMax)
		}
	}
}
