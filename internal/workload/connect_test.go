package workload

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	v1 "capsule/api/capsule/v1"
)

func denyLAN(s *v1.WorkloadSpec) { s.Lan = "deny" }

// The name of a workload that an operator stopped, or that is done, leads nowhere.
func TestLoopTellsWhoHasStopped(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1")
		if m.net.stopped["web"] {
			m.Error("its name has no address though it runs")
		}
		m.stopped("web", true)
		if !m.net.stopped["web"] {
			m.Error("its name has an address though it is stopped")
		}
		m.stopped("web", false)
		if m.net.stopped["web"] {
			m.Error("its name has no address though it runs again")
		}
	})
}

// A new instance that can't be made takes nothing away from what serves: not the
// wall around it either.
func TestLoopDeniesTheLAN(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1", denyLAN)
		want := func(denied bool) {
			t.Helper()
			if m.net.denied["web"] != denied {
				m.Errorf("denied %v, want %v", m.net.denied["web"], denied)
			}
		}
		want(true)
		m.driver.breaks("prepare", errors.New("no space"))
		m.apply("web", "web:1")
		want(true)
		m.driver.breaks("prepare", nil)
		m.apply("web", "web:2")
		want(false)
		m.apply("web", "web:2", denyLAN)
		want(true)
	})
}

// Two that want the same port, as one is not yet what it is declared to be: whoever
// has it keeps it, all others are published, and it is handed over when it is free.
func TestPortsAreHandedOver(t *testing.T) {
	inMachine(t, func(m *machine) {
		on := func(port uint32) func(*v1.WorkloadSpec) {
			return func(s *v1.WorkloadSpec) { s.Ports = []*v1.Port{{HostPort: port, Port: 80}} }
		}
		want := func(list ...string) {
			t.Helper()
			slices.Sort(m.net.published)
			if diff := cmp.Diff(list, m.net.published); diff != "" {
				t.Error(diff)
			}
		}
		m.apply("web", "web:1", on(8080))
		m.apply("web", "absent:1", on(8081)) // and serves on 8080
		m.apply("after", "web:1", on(8080))
		m.apply("other", "web:1", on(9090))
		want("other 9090/tcp", "web 8080/tcp")
		m.says("after", `running, but: publish port of workload "after": port 8080/tcp is already published by workload "web"`)
		m.apply("web", "web:2", on(8081))
		want("after 8080/tcp", "other 9090/tcp", "web 8081/tcp")
		m.rest(10 * time.Minute)
		m.says("after", "running")
		m.kill()
		m.boot()
		want("after 8080/tcp", "other 9090/tcp", "web 8081/tcp")
	})
}

func TestPorts(t *testing.T) {
	obj := &v1.Object{Meta: &v1.Meta{Name: "web"}, Kind: &v1.Object_Workload{Workload: &v1.Workload{Spec: &v1.WorkloadSpec{Ports: []*v1.Port{
		{HostPort: 8080, Port: 80, Protocol: "tcp"},
		{HostPort: 8000, HostPortEnd: 8100, Port: 9000, PortEnd: 9100, Protocol: "udp", Address: "::1"},
		{HostPort: 445, Port: 445, Protocol: "tcp", From: "lan"},
		{HostPort: 446, Port: 446, Protocol: "tcp", From: "192.168.1.0/24"},
		{HostPort: 447, Port: 447, Protocol: "tcp", From: "the moon"},
	}}}}}
	var got []string
	for _, p := range Ports(obj) {
		got = append(got, fmt.Sprintf("%s to %d from %v", p, p.Target, p.From))
	}
	if diff := cmp.Diff([]string{
		"8080/tcp to 80 from {false invalid Prefix}", "[::1]:8000-8100/udp to 9000 from {false invalid Prefix}",
		"445/tcp to 445 from {true invalid Prefix}", "446/tcp to 446 from {false 192.168.1.0/24}",
	}, got); diff != "" {
		t.Error(diff)
	}
}
