package image

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"capsule/internal/imagetest"
)

// keyed is a Registries in memory.
type keyed map[string]RegistryAccess

func (k keyed) Lookup(host string) (RegistryAccess, error) {
	if host == "held.lan" {
		return RegistryAccess{}, errors.New("secret \"logins\" is not declared")
	}
	return k[host], nil
}

func TestWays(t *testing.T) {
	known := keyed{
		"docker.io":       {Mirrors: []string{"mirror.lan:5000", "other.lan"}, Username: "bob"},
		"mirror.lan:5000": {PlainHTTP: true, Mirrors: []string{"far.lan"}}, // of its own images
		"sad.lan":         {Mirrors: []string{"held.lan"}},
	}
	for host, want := range map[string][]way{
		"docker.io": {{"mirror.lan:5000", known["mirror.lan:5000"]}, {"other.lan", RegistryAccess{}}, {"docker.io", known["docker.io"]}},
		"plain.lan": {{"plain.lan", RegistryAccess{}}},
	} {
		got, err := ways(known, host)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(way{})); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", host, err, diff)
		}
	}
	for _, host := range []string{"held.lan", "sad.lan"} {
		if _, err := ways(known, host); err == nil || !strings.Contains(err.Error(), "registry "+host) || !strings.Contains(err.Error(), "is not declared") {
			t.Errorf("%s: %v", host, err)
		}
	}
	if got, err := ways(nil, "a.lan"); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
}

// TestNoPasswordInTheClear: an https registry can't send a login to plain HTTP.
func TestNoPasswordInTheClear(t *testing.T) {
	transport, err := transport(RegistryAccess{Username: "bob", Password: "x"})
	if err != nil {
		t.Fatal(err)
	}
	plain := imagetest.Registry(t, imagetest.RegistryOptions{})
	r, err := http.NewRequest("GET", "http://"+plain.Host+"/token", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := transport.RoundTrip(r)
	if err == nil {
		answer.Body.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "plain HTTP") {
		t.Errorf("%v", err)
	}
	if n := plain.Requests(""); n != 0 {
		t.Errorf("%d requests came", n)
	}
}
