package compose

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// carried are the fields of a service that convert sees to; of all others unlike tells.
var carried = []string{
	"attach", "build", "cap_add", "cap_drop", "command", "configs", "container_name", "cpus", "depends_on", "deploy", "entrypoint",
	"env_file", "environment", "expose", "extends", "healthcheck", "hostname", "image", "init", "links", "mem_limit", "name",
	"network_mode", "networks", "pids_limit", "ports", "profiles", "pull_policy", "restart", "scale", "secrets", "security_opt",
	"stop_grace_period", "stop_signal", "tmpfs", "user", "volumes", "working_dir",
}

func (s *service) convert() {
	s.scale()
	if s.left {
		return
	}
	s.image()
	s.restart() // before what depends on it: health
	s.network()
	s.argv()
	s.environment()
	s.ports()
	s.mounts()
	s.shownFiles()
	s.health()
	s.order()
	s.resources()
	s.identity()
	s.stopping()
	s.security()
	s.unlike()
}

// scale leaves out what is not to run at all.
func (s *service) scale() {
	path := s.at("scale")
	if !s.has("scale") {
		path = s.at("deploy.replicas")
	}
	switch n := s.config.GetScale(); {
	case n == 0:
		s.lose(path, "is 0; left out")
		s.left = true
	case n > 1:
		s.lose(path, "is %d; one runs: write more workloads with names of their own", n)
	}
	if s.config.Provider != nil {
		s.lose(s.at("provider"), "is a program on the machine that runs Compose; the service is left out")
		s.left = true
	}
}

func (s *service) image() {
	s.spec.Image = s.config.Image
	if s.config.Build != nil {
		if s.spec.Image == "" {
			s.spec.Image = s.model.project.Name + "-" + s.config.Name
		}
		s.lose(s.at("build"), "nothing is built here; the image %q is expected: build it with Docker, then \"docker save %s | capsulectl image push -\"", s.spec.Image, s.spec.Image)
	}
	switch s.config.PullPolicy {
	case "", types.PullPolicyMissing, types.PullPolicyIfNotPresent, types.PullPolicyNever, types.PullPolicyBuild:
	default:
		s.lose(s.at("pull_policy"), "is %q; an image that the capsule has is not pulled again: name a newer tag", s.config.PullPolicy)
	}
}

// argv maps the words for a program: an entrypoint replaces the image's arguments too,
// there and here.
func (s *service) argv() {
	entrypoint, command := []string(s.config.Entrypoint), []string(s.config.Command)
	if len(entrypoint) == 1 && entrypoint[0] == "" {
		entrypoint = []string{}
	}
	switch {
	case len(entrypoint) > 0:
		s.try(s.spec, s.at("entrypoint"), func(w *capsulev1.WorkloadSpec) { w.Command = entrypoint })
		s.try(s.spec, s.at("command"), func(w *capsulev1.WorkloadSpec) { w.Args = command })
	case entrypoint != nil && len(command) > 0: // an empty one: the command is the program
		s.try(s.spec, s.at("command"), func(w *capsulev1.WorkloadSpec) { w.Command = command })
	case len(command) > 0:
		s.try(s.spec, s.at("command"), func(w *capsulev1.WorkloadSpec) { w.Args = command })
	case entrypoint != nil:
		s.lose(s.at("entrypoint"), "is empty; the image's is used: write the whole program as command")
	case command != nil:
		s.lose(s.at("command"), "is empty; the image's arguments are used: write the program as command in the manifest, which drops them")
	}
	if dir := s.config.WorkingDir; dir != "" {
		s.try(s.spec, s.at("working_dir"), func(w *capsulev1.WorkloadSpec) { w.WorkingDir = dir })
	}
}

func (s *service) environment() {
	for _, name := range s.model.absent[s.config.Name] {
		s.lose(s.at("environment."+name), "has no value, and is not set here; left out; set it in %s and convert again", filepath.Join(s.src.Dir, ".env"))
	}
	env := s.model.env[s.config.Name]
	for _, name := range sortedKeys(env) {
		s.try(s.spec, s.at("environment."+name), func(w *capsulev1.WorkloadSpec) {
			if w.Env == nil {
				w.Env = map[string]string{}
			}
			w.Env[name] = env[name]
		})
	}
}

func (s *service) restart() {
	path, policy := s.at("restart"), s.config.Restart
	if d := s.config.Deploy; d != nil && d.RestartPolicy != nil {
		path, policy = s.at("deploy.restart_policy"), d.RestartPolicy.Condition
		if d.RestartPolicy.Delay != nil || d.RestartPolicy.MaxAttempts != nil || d.RestartPolicy.Window != nil {
			s.lose(path, "its times and attempts have no equivalent; it is started again after 100 ms, doubling to 5 min, for ever")
		}
	}
	name, attempts, _ := strings.Cut(policy, ":")
	switch name {
	case "", "no", "none":
		if name == "" && path != s.at("restart") { // a policy of deploy without a condition
			s.spec.Restart = "always"
			return
		}
		s.spec.Restart = "never"
	case "always", "unless-stopped", "any":
		s.spec.Restart = "always"
	case "on-failure":
		s.spec.Restart = "on-failure"
		if attempts != "" {
			s.lose(path, "tries at most %s times; here it is tried for ever, every 5 min in the end", attempts)
		}
	default:
		s.spec.Restart = "always"
		s.lose(path, "%q is not known; restart is always", policy)
	}
}

// order maps depends_on, links and what else Docker takes for an order.
func (s *service) order() {
	for _, name := range sortedKeys(s.config.DependsOn) {
		d, path := s.config.DependsOn[name], s.at("depends_on."+name)
		called, ok := s.names[name]
		if !ok {
			continue // of a profile that was not asked for, which is told there
		}
		if _, own := mapping(mapping(s.raw)["depends_on"])[name]; own && d.Restart {
			s.lose(path+".restart", "a workload is not restarted when another one is; left out")
		}
		if other := s.model.project.Services[name]; other.GetScale() == 0 || other.Provider != nil {
			s.lose(path, "%q is left out, so it is not waited for", name)
			continue
		}
		s.try(s.spec, path, func(w *capsulev1.WorkloadSpec) { w.DependsOn = append(w.DependsOn, called) })
	}
	for i, link := range s.config.Links {
		if name, alias, ok := strings.Cut(link, ":"); ok && alias != s.names[name] {
			s.lose(fmt.Sprintf("%s[%d]", s.at("links"), i), "nothing answers to the alias %q; the name is %q", alias, s.names[name])
		}
	}
}

// resources maps limits; those of deploy win, as they do there.
func (s *service) resources() {
	memory, cpus, pids := int64(s.config.MemLimit), float64(s.config.CPUS), s.config.PidsLimit
	at := map[string]string{"memory": s.at("mem_limit"), "cpus": s.at("cpus"), "pids": s.at("pids_limit")}
	if d := s.config.Deploy; d != nil && d.Resources.Limits != nil {
		l, path := d.Resources.Limits, s.at("deploy.resources.limits")
		if l.MemoryBytes != 0 {
			memory, at["memory"] = int64(l.MemoryBytes), path+".memory"
		}
		if l.NanoCPUs != 0 {
			cpus, at["cpus"] = float64(l.NanoCPUs.Value()), path+".cpus"
		}
		if l.Pids != 0 {
			pids, at["pids"] = l.Pids, path+".pids"
		}
	}
	r := &capsulev1.Resources{}
	set := func(path string, fill func(*capsulev1.Resources)) {
		if s.try(&capsulev1.WorkloadSpec{}, path, func(w *capsulev1.WorkloadSpec) {
			if w.Resources == nil {
				w.Resources = &capsulev1.Resources{}
			}
			fill(w.Resources)
		}) {
			fill(r)
			s.spec.Resources = r
		}
	}
	if memory != 0 {
		set(at["memory"], func(r *capsulev1.Resources) { r.Memory = memory })
	}
	if cpus != 0 {
		set(at["cpus"], func(r *capsulev1.Resources) { r.Cpus = int64(math.Round(min(cpus, 1e9) * 1000)) })
	}
	switch {
	case pids > 0:
		set(at["pids"], func(r *capsulev1.Resources) { r.Pids = pids })
	case pids < 0:
		s.lose(at["pids"], "there is always a limit of processes, 4096 here; raise it with resources.pids")
	}
	s.deploy()
}

// deploy tells of what else stands there.
func (s *service) deploy() {
	deploy := mapping(mapping(s.raw)["deploy"])
	for _, key := range sortedKeys(deploy) {
		path := s.at("deploy." + key)
		switch {
		case empty(deploy[key]), strings.HasPrefix(key, "x-"), key == "restart_policy", key == "replicas", key == "mode":
		case key == "resources":
			s.reservations(mapping(deploy[key]), path)
		default:
			s.lose(path, "is for a cluster; left out")
		}
	}
}

func (s *service) reservations(resources map[string]any, path string) {
	limits, reserved := mapping(resources["limits"]), mapping(resources["reservations"])
	for _, key := range sortedKeys(limits) {
		if key != "cpus" && key != "memory" && key != "pids" && !empty(limits[key]) {
			s.lose(join(path, "limits", key), "has no equivalent; left out")
		}
	}
	for _, key := range sortedKeys(reserved) {
		switch {
		case empty(reserved[key]):
		case key == "devices":
			s.lose(join(path, "reservations", key), "%s", noDevices)
		default:
			s.lose(join(path, "reservations", key), "nothing is reserved for a workload; left out: give the others limits instead")
		}
	}
}

func (s *service) identity() {
	if user := s.config.User; user != "" {
		s.try(s.spec, s.at("user"), func(w *capsulev1.WorkloadSpec) { w.User = user })
	}
}

func (s *service) stopping() {
	if sig := s.config.StopSignal; sig != "" {
		s.try(s.spec, s.at("stop_signal"), func(w *capsulev1.WorkloadSpec) { w.StopSignal = sig })
	}
	if grace := s.config.StopGracePeriod; grace != nil {
		s.spec.StopGrace = s.within(s.at("stop_grace_period"), time.Duration(*grace), 0, manifest.GraceMax)
	}
}

// within takes a time as far as a manifest may say it.
func (s *service) within(path string, t, least, most time.Duration) *durationpb.Duration {
	fits := min(max(t, least), most)
	if fits != t {
		s.lose(path, "is %v, and must be within %v and %v here; it is %v", t, least, most, fits)
	}
	return durationpb.New(fits)
}

// ownCapabilities are those that root has in a workload; internal/process has the list
// that is given.
var ownCapabilities = []string{"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}

func (s *service) security() {
	for i, name := range s.config.CapAdd {
		plain := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		if !slices.Contains(ownCapabilities, plain) {
			s.lose(s.at("cap_add["+strconv.Itoa(i)+"]"), "%s is given to no workload; left out: what needs it fails with \"operation not permitted\"", plain)
		}
	}
	if len(s.config.CapDrop) > 0 {
		s.lose(s.at("cap_drop"), "none is taken away; root in a workload keeps %s", strings.Join(ownCapabilities, ", "))
	}
	for i, opt := range s.config.SecurityOpt {
		if !slices.Contains([]string{"no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"}, opt) { // so it is always
			s.lose(s.at("security_opt["+strconv.Itoa(i)+"]"), "%q has no equivalent; each workload has a filter of system calls and no new privileges", opt)
		}
	}
}
