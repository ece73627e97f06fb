package health

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "capsule/api/capsule/v1"
)

const (
	starting  = v1.HealthState_HEALTH_STATE_STARTING
	healthy   = v1.HealthState_HEALTH_STATE_HEALTHY
	unhealthy = v1.HealthState_HEALTH_STATE_UNHEALTHY
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// A history is checks at seconds after a start: "+" succeeded, "-" failed, "?" was
// not made.
func TestAfter(t *testing.T) {
	plain := Check{Interval: 30 * time.Second, Retries: 3}
	patient := Check{Interval: 10 * time.Second, Retries: 2, StartPeriod: time.Minute}
	once := Check{Interval: 10 * time.Second, Retries: 1}
	for _, test := range []struct {
		name    string
		check   Check
		before  v1.HealthState
		history string
		want    v1.HealthState
	}{
		{"nothing known", plain, 0, "", 0},
		{"first failure", plain, 0, "-1", starting},
		{"first success", plain, 0, "+1", healthy},
		{"success ends starting", plain, 0, "-1 -2 -4 +9", healthy},
		{"one failure an interval counts", plain, 0, "-1 -5 -10 -15 -20 -25 -29", starting},
		{"failures of three intervals", plain, 0, "-5 -30 -35 -60 -65 -90", unhealthy},
		{"failures of two intervals", plain, 0, "-5 -30 -35 -60 -65 -89", starting},
		{"within the start period", patient, 0, "-5 -15 -25 -35 -45 -55 -69", starting},
		{"after the start period", patient, 0, "-55 -70 -80", unhealthy},
		{"a success within the start period ends it", patient, 0, "-5 +10 -20 -30", unhealthy},
		{"failures that are not in a row", plain, 0, "+1 -31 -61 +91 -121 -151", healthy},
		{"failures in a row", plain, 0, "+1 -31 -61 -91", unhealthy},
		{"it recovers", plain, 0, "+1 -31 -61 -91 -121 +151", healthy},
		{"and fails again, as slowly", plain, 0, "+1 -31 -61 -91 +121 -151 -181", healthy},
		{"one failure is enough", once, 0, "+1 -11", unhealthy},
		{"one failure is enough at the start", once, 0, "-11", unhealthy},
		{"no check, no verdict", plain, 0, "?1 ?30 ?60 ?90 ?120", starting},
		{"a check that was not made breaks no row", plain, 0, "+1 -31 ?61 -91 ?121 -151", unhealthy},
		{"goes on healthy", plain, healthy, "-1 -31", healthy},
		{"goes on unhealthy", plain, unhealthy, "-1", unhealthy},
		{"goes on unhealthy until it works", plain, unhealthy, "-1 +2", healthy},
		{"goes on starting", patient, starting, "-30", starting},
	} {
		p := Progress{State: test.before}
		for _, word := range strings.Fields(test.history) {
			var second int
			if _, err := fmt.Sscan(word[1:], &second); err != nil {
				t.Fatal(err)
			}
			r := Result{OK: word[0] == '+', Void: word[0] == '?'}
			p = p.After(test.check, noon, noon.Add(time.Duration(second)*time.Second), r)
		}
		if p.State != test.want {
			t.Errorf("%s: %v after %s", test.name, p, test.history)
		}
	}
}

func TestNext(t *testing.T) {
	c := Check{Interval: 30 * time.Second, StartInterval: 5 * time.Second}
	var got []string
	for looked := range 6 {
		got = append(got, Progress{Looked: looked}.Next(c).String())
	}
	got = append(got, Progress{Looked: 1 << 40}.Next(c).String(), Progress{State: healthy}.Next(c).String(), Progress{State: unhealthy}.Next(c).String())
	if diff := cmp.Diff("500ms 1s 2s 4s 5s 5s 5s 30s 30s", strings.Join(got, " ")); diff != "" {
		t.Error(diff)
	}
}

func TestOf(t *testing.T) {
	for name, h := range map[string]*v1.Health{"absent": nil, "off": {None: true}, "empty": {}} {
		if c, ok := Of(h); ok {
			t.Errorf("%s: %+v", name, c)
		}
	}
	got, ok := Of(&v1.Health{Http: &v1.HTTPCheck{Port: 80, Path: "/x", Scheme: "https"}, Interval: durationpb.New(2 * time.Second)})
	want := Check{
		HTTP: &HTTP{80, "/x", "https"}, Interval: 2 * time.Second, Timeout: 5 * time.Second,
		StartInterval: 2 * time.Second, Retries: 3,
	}
	if diff := cmp.Diff(want, got); diff != "" || !ok {
		t.Error(diff)
	}
}
