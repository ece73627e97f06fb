package compose

import (
	"slices"
	"strings"
)

const noDevices = "no device of the capsule is handed to a workload; left out: what needs it does not work"

// unlikes are fields of a service that no manifest has, and what that means.
var unlikes = map[string]string{
	"annotations":         "nothing reads them here; left out",
	"blkio_config":        "limits are not by device here; left out: resources.io has one for all disks",
	"cgroup":              "each workload has a group of its own; left out",
	"cgroup_parent":       "each workload has a group of its own; left out",
	"cpu_count":           "left out: resources.cpus is the limit of processors here",
	"cpu_percent":         "left out: resources.cpus is the limit of processors here",
	"cpu_period":          "left out: resources.cpus is the limit of processors here",
	"cpu_quota":           "left out: resources.cpus is the limit of processors here",
	"cpu_rt_period":       "no workload runs in real time; left out",
	"cpu_rt_runtime":      "no workload runs in real time; left out",
	"cpu_shares":          "each workload has the same share while all are busy; left out: resources.cpus limits one",
	"cpuset":              "no workload is bound to processors; left out: resources.cpus limits one",
	"credential_spec":     "is for Windows; left out",
	"develop":             "is for developing with Compose; left out",
	"device_cgroup_rules": noDevices,
	"devices":             noDevices,
	"dns":                 "the capsule answers DNS itself, by the servers of its network; left out: set those of the capsule",
	"dns_opt":             "the capsule answers DNS itself; left out",
	"dns_search":          "names are looked up as they are, and as workloads; left out: write names in full",
	"domainname":          "a workload is NAME.capsule.internal; left out",
	"external_links":      "all workloads of a capsule reach each other by name; left out",
	"extra_hosts":         "no line is added to a hosts file; left out: name the address where it is used, or have your DNS answer; the capsule itself answers to its own name",
	"gpus":                noDevices,
	"group_add":           "a workload has one group, that of user; left out",
	"ipc":                 "no workload shares the memory of another one; left out",
	"isolation":           "is for Windows; left out",
	"label_file":          "nothing reads labels here; left out",
	"labels":              "nothing reads labels here; left out: what a proxy or an updater is told by them is told to it in another way",
	"log_driver":          "the capsule keeps the last 16 MiB of each log; left out",
	"log_opt":             "the capsule keeps the last 16 MiB of each log; left out",
	"logging":             "the capsule keeps the last 16 MiB of each log; left out",
	"mac_address":         "the capsule chooses it; left out",
	"mem_reservation":     "nothing is reserved for a workload; left out",
	"mem_swappiness":      "a capsule has no swap; left out",
	"memswap_limit":       "a capsule has no swap; left out",
	"models":              "no model is run; left out",
	"net":                 "left out: network_mode is its name today",
	"oom_kill_disable":    "a workload that passes its limit ends; left out",
	"oom_score_adj":       "the capsule chooses; left out: what has a limit of memory is ended last",
	"pid":                 "no workload sees processes of others; left out",
	"platform":            "images of the capsule's own architecture run, and no others; left out",
	"post_start":          "nothing is run beside the program; left out: capsulectl workload exec runs it",
	"pre_start":           "nothing is run before the program; left out: make it a workload of its own with restart never, and name it in dependsOn",
	"pre_stop":            "nothing is run before the stop signal; left out",
	"privileged":          "no workload has the rights of the capsule; left out: what needs them does not work",
	"read_only":           "what a workload writes outside of its mounts is lost with its instance, and not refused; left out",
	"runtime":             "left out: kind MicroVM is the stronger wall",
	"shm_size":            "/dev/shm has 64 MiB in each workload; left out",
	"stdin_open":          "no input is kept open; left out: capsulectl workload exec -i -t NAME -- sh is a terminal",
	"storage_opt":         "left out: resources.disk is the limit",
	"sysctls":             "no setting of the kernel is changed; left out. Low ports and ping need none here",
	"tty":                 "the program has no terminal; left out: capsulectl workload exec -i -t NAME -- sh is one",
	"ulimits":             "are the same for each workload: 65536 open files, 1048576 when asked for; left out",
	"umask":               "is the image's; left out",
	"use_api_socket":      "there is no Docker to talk to; left out",
	"userns_mode":         "has no equivalent; left out",
	"uts":                 "each workload has a hostname of its own; left out",
	"volume_driver":       "there is one kind of volume; left out",
	"volumes_from":        "left out: name the volumes in the mounts of each workload",
}

// unlike tells of every field that is set and not carried over.
func (s *service) unlike() {
	raw := mapping(s.raw)
	for _, key := range sortedKeys(raw) {
		if slices.Contains(carried, key) || strings.HasPrefix(key, "x-") || empty(raw[key]) {
			continue
		}
		message, ok := unlikes[key]
		if !ok {
			message = "has no equivalent; left out"
		}
		s.lose(s.at(key), "%s", message)
	}
	if s.config.Init != nil && *s.config.Init {
		s.lose(s.at("init"), "the program is process 1 itself; left out: should ended children pile up, an image with an init as its entrypoint helps")
	}
}
