package compose

import (
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
)

// network maps the mode, and tells of what is asked of single networks: there is one
// bridge here, on which all names resolve.
func (s *service) network() {
	switch mode := s.config.NetworkMode; mode {
	case "", "bridge", "default":
	case "host":
		s.spec.Network = "host"
		s.lose(s.at("network_mode"), "the workload has the capsule's network, but others reach only ports that it publishes; write those into ports of the manifest")
	case "none":
		s.spec.Network = "none"
	default:
		s.lose(s.at("network_mode"), "%q: no workload is within the network of another one; it has an address of its own, and its traffic does not go through the other one", mode)
	}
	raw := mapping(mapping(s.raw)["networks"])
	for _, name := range sortedKeys(raw) {
		settings := mapping(raw[name])
		for _, key := range sortedKeys(settings) {
			path := s.at("networks." + name + "." + key)
			switch {
			case empty(settings[key]), strings.HasPrefix(key, "x-"), key == "aliases", key == "priority", key == "gw_priority":
			case key == "ipv4_address" || key == "ipv6_address":
				s.lose(path, "the capsule gives each workload an address that stays; left out: use the name %q", s.names[s.config.Name])
			default:
				s.lose(path, "has no equivalent on the capsule's bridge; left out")
			}
		}
	}
}

// networks tells of what the one bridge does not do.
func (c *converter) networks() {
	raw := mapping(c.model.raw["networks"])
	for _, name := range sortedKeys(raw) {
		path := join("networks", name)
		settings := mapping(raw[name])
		for _, key := range sortedKeys(settings) {
			c.networkSetting(join(path, key), key, settings[key])
		}
	}
	if a, b := c.apart(); a != "" {
		c.lose("networks", "all workloads of a capsule are on one bridge: %q and %q, which had no network in common, reach each other", c.names[a], c.names[b])
	}
}

func (c *converter) networkSetting(path, key string, value any) {
	switch {
	case empty(value), strings.HasPrefix(key, "x-"):
	case key == "name", key == "external", key == "attachable", key == "enable_ipv4", key == "enable_ipv6":
	case key == "driver" && (value == "bridge" || value == "default"):
	case key == "internal":
		c.lose(path, "workloads on it reach the internet here; network: {mode: none} cuts one off from all, {lan: deny} from the networks around the capsule")
	case key == "driver":
		c.lose(path, "%v: workloads are on the capsule's bridge; network: host in a manifest gives one the capsule's own", value)
	case key == "labels":
		c.lose(path, "nothing reads labels here; left out")
	default:
		c.lose(path, "has no equivalent on the capsule's bridge; left out")
	}
}

// apart finds two services that Docker keeps from each other.
func (c *converter) apart() (a, b string) {
	var names []string
	for _, name := range c.serviceNames() {
		if len(c.model.project.Services[name].Networks) > 0 {
			names = append(names, name)
		}
	}
	for i, a := range names {
		for _, b := range names[i+1:] {
			if !meet(c.model.project.Services[a], c.model.project.Services[b]) {
				return a, b
			}
		}
	}
	return "", ""
}

func meet(a, b types.ServiceConfig) bool {
	return slices.ContainsFunc(sortedKeys(a.Networks), func(name string) bool { _, ok := b.Networks[name]; return ok })
}
