package workload

import (
	"errors"
	"fmt"
	"testing"

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
