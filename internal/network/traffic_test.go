package network

import "testing"

// A workload's traffic is counted as it sees it, and from its own link's making.
func TestTraffic(t *testing.T) {
	w := newWorld(t)
	web, at := w.workload(t, "web")
	client, _ := w.workload(t, "client")
	to := at.Addresses[0].String() + ":80"
	greet(t, web, to, "web")
	reaches(t, client, to, "web")
	traffic, err := w.Traffic()
	check(t, err)
	for _, name := range []string{"web", "client"} {
		if tr := traffic[name]; tr.Received < 100 || tr.Sent < 100 {
			t.Errorf("%s: %+v", name, tr)
		}
	}
	check(t, w.Detach(t.Context(), "client"))
	traffic, err = w.Traffic()
	check(t, err)
	if _, known := traffic["client"]; known || len(traffic) != 1 {
		t.Errorf("got %v", traffic)
	}
}
