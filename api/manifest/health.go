package manifest

import (
	"strings"
	"time"

	yaml "go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
)

// Limits of what a check of a workload's health may declare.
const (
	HealthIntervalMin = time.Second
	HealthIntervalMax = time.Hour
	HealthTimeoutMin  = 100 * time.Millisecond
	HealthTimeoutMax  = 5 * time.Minute
	HealthPeriodMax   = 24 * time.Hour // in which failures after a start do not count
	HealthRetriesMax  = 100
	dependsMax        = 32 // workloads that one depends on
	httpPathMax       = 2048
)

// Defaults of a check.
const (
	HealthInterval      = 30 * time.Second
	HealthTimeout       = 5 * time.Second
	HealthStartInterval = 5 * time.Second
	HealthRetries       = 3
)

// What becomes of an unhealthy workload.
const (
	OnFailureRestart = "restart"
	OnFailureNone    = "none"
)

const (
	healthNone    = "none"
	defaultPath   = "/"
	defaultScheme = "http"
)

var (
	onFailures = []string{OnFailureRestart, OnFailureNone}
	schemes    = []string{"http", "https"}
)

// parseHealth reads "none".
func parseHealth(s string) (*capsulev1.Health, error) {
	if s != healthNone {
		return nil, invalid("want %q or fields such as \"http\", found %q", healthNone, clip(s))
	}
	return &capsulev1.Health{None: true}, nil
}

// lineHint tells who writes a program and its arguments in one line how it is
// meant.
func lineHint(path string, n *yaml.Node) string {
	if path != "health.exec" || n.Kind != yaml.ScalarNode {
		return ""
	}
	return `; write each word as an entry, or [/bin/sh, -c, "…"] for a line of a shell`
}

// DefaultHealth fills the absent fields of a check.
func DefaultHealth(h *capsulev1.Health, restart string) {
	if h == nil || h.None {
		return
	}
	for _, t := range []struct {
		field **durationpb.Duration
		value time.Duration
	}{{&h.Interval, HealthInterval}, {&h.Timeout, HealthTimeout}, {&h.StartPeriod, 0}} {
		if *t.field == nil {
			*t.field = durationpb.New(t.value)
		}
	}
	if h.StartInterval == nil {
		h.StartInterval = durationpb.New(min(HealthStartInterval, h.Interval.AsDuration()))
	}
	if h.Retries == 0 {
		h.Retries = HealthRetries
	}
	if h.OnFailure == "" {
		h.OnFailure = OnFailureRestart
		if restart == restartNever {
			h.OnFailure = OnFailureNone
		}
	}
	if h.Http != nil {
		if h.Http.Path == "" {
			h.Http.Path = defaultPath
		}
		if h.Http.Scheme == "" {
			h.Http.Scheme = defaultScheme
		}
	}
}

func defaultHealth(s *capsulev1.WorkloadSpec) { DefaultHealth(s.Health, s.Restart) }

func (c *check) health(s *capsulev1.WorkloadSpec) {
	h := s.GetHealth()
	if h == nil {
		return
	}
	if h.GetNone() {
		if !proto.Equal(h, &capsulev1.Health{None: true}) {
			c.add("health.none", "health.none stands alone: it says that there is no check")
		}
		return
	}
	c.probe(s)
	c.healthTimes(h)
	if h.GetRetries() > HealthRetriesMax {
		c.add("health.retries", "health.retries must be within 1 and %d", HealthRetriesMax)
	}
	switch f := h.GetOnFailure(); {
	case f == "", f == OnFailureNone:
	case f != OnFailureRestart:
		c.add("health.onFailure", "health: unknown onFailure %q; %s", clip(f), suggest(f, onFailures))
	case s.GetRestart() == restartNever:
		c.add("health.onFailure", "health.onFailure %q: restart is \"never\"; want onFailure none, or restart always or on-failure", f)
	}
}

// probe checks what is done to tell the health.
func (c *check) probe(s *capsulev1.WorkloadSpec) {
	h := s.GetHealth()
	var given []string
	if len(h.GetExec()) > 0 {
		given = append(given, "exec")
		c.healthExec(h.GetExec())
	}
	if h.GetHttp() != nil {
		given = append(given, "http")
		c.healthHTTP(h.GetHttp())
	}
	if h.GetTcp() != nil {
		given = append(given, "tcp")
		c.healthPort("health.tcp.port", h.GetTcp().GetPort())
	}
	switch {
	case len(given) == 0:
		c.found = append(c.found, problem{"health", "health: want one of exec, http, tcp; or \"none\" for no check", true})
	case len(given) > 1:
		c.add("health."+given[1], "health: %s are given; want exactly one of exec, http, tcp", strings.Join(given, " and "))
	case given[0] != "exec" && s.GetNetwork() == "none":
		c.add("health."+given[0], "health.%s: with network \"none\" the workload has no address; want exec", given[0])
	}
}

func (c *check) healthExec(argv []string) {
	if len(argv) > argvMax {
		c.add("health.exec", "health.exec has more than %d words", argvMax)
		return
	}
	total := 0
	for i, w := range argv {
		total += len(w)
		if bad := badText(w); bad != "" {
			at := index("health.exec", i)
			c.add(at, "%s: %s", at, bad)
		}
	}
	if total > ArgvBytesMax {
		c.add("health.exec", "health.exec holds %d bytes, at most %d can be given to a program", total, ArgvBytesMax)
	}
	switch argv[0] {
	case "":
		c.add("health.exec[0]", "health.exec[0] is empty, want a program")
	case "CMD":
		c.add("health.exec[0]", "health.exec[0]: %q is a word of Dockerfiles; begin with the program", argv[0])
	case "CMD-SHELL":
		c.add("health.exec[0]", "health.exec[0]: %q is a word of Dockerfiles; write [/bin/sh, -c, \"…\"]", argv[0])
	case "NONE":
		c.add("health.exec[0]", "health.exec[0]: %q is a word of Dockerfiles; write \"health: none\"", argv[0])
	}
}

func (c *check) healthHTTP(h *capsulev1.HTTPCheck) {
	c.healthPort("health.http.port", h.GetPort())
	switch p := h.GetPath(); {
	case p == "":
	case p[0] != '/':
		c.add("health.http.path", "health.http.path %q must begin with \"/\"", clip(p))
	case len(p) > httpPathMax:
		c.add("health.http.path", "health.http.path is longer than %d bytes", httpPathMax)
	case strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' }) || badText(p) != "":
		c.add("health.http.path", "health.http.path %q must have no space, control character or \"#\"", clip(p))
	}
	if s := h.GetScheme(); s != "" && s != "http" && s != "https" {
		c.add("health.http.scheme", "health.http: unknown scheme %q; %s", clip(s), suggest(s, schemes))
	}
}

func (c *check) healthPort(at string, port uint32) {
	if port < 1 || port > maxPort {
		c.add(at, "%s must be within 1 and %d", at, maxPort)
	}
}

func (c *check) healthTimes(h *capsulev1.Health) {
	for _, t := range []struct {
		name        string
		value       *durationpb.Duration
		least, most time.Duration
	}{
		{"interval", h.GetInterval(), HealthIntervalMin, HealthIntervalMax},
		{"timeout", h.GetTimeout(), HealthTimeoutMin, HealthTimeoutMax},
		{"startPeriod", h.GetStartPeriod(), 0, HealthPeriodMax},
		{"startInterval", h.GetStartInterval(), HealthIntervalMin, HealthIntervalMax},
	} {
		if v := t.value; v != nil && (!v.IsValid() || v.AsDuration() < t.least || v.AsDuration() > t.most) {
			c.add("health."+t.name, "health.%s must be within %s and %s", t.name, formatDuration(t.least), formatDuration(t.most))
		}
	}
}

// rollback checks that a change may be told to be unwell, and be gone back from.
// Whether the image has a check only the capsule can tell; therefore it has no
// default here.
func (c *check) rollback(s *capsulev1.WorkloadSpec) {
	switch {
	case !s.GetRollback():
	case s.GetHealth().GetNone():
		c.add("rollback", "rollback: with health \"none\" nothing tells whether a change is well; want a check, or no rollback")
	case s.GetRestart() == restartNever:
		c.add("rollback", "rollback: with restart \"never\" what ran before is not started again; want restart always or on-failure")
	}
}

// dependsOn checks names; whether they form a circle with others only the
// capsule can tell.
func (c *check) dependsOn(names []string) {
	if len(names) > dependsMax {
		c.add("dependsOn", "dependsOn has more than %d names", dependsMax)
		return
	}
	seen := map[string]bool{}
	for i, name := range names {
		at := index("dependsOn", i)
		switch problem := nameProblem(name); {
		case problem != "":
			c.add(at, "%s: %s", at, problem)
		case name == c.name:
			c.add(at, "%s: %q can't wait for itself", at, name)
		case seen[name]:
			c.add(at, "%s: %q is given twice", at, name)
		}
		seen[name] = true
	}
}
