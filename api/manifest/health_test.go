package manifest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is left out is filled in, and what was filled in is read back.
func TestHealthDefaults(t *testing.T) {
	for _, c := range []struct{ add, want string }{
		{"health: none", "health: none\n"},
		{"health: {http: {port: 80}}", `health:
  http:
    port: 80
    path: /
    scheme: http
  interval: 30s
  timeout: 5s
  retries: 3
  startPeriod: 0s
  startInterval: 5s
  onFailure: restart
`},
		{"restart: never\nhealth: {exec: [/bin/check, '-v'], interval: 2s}", `health:
  exec:
    - /bin/check
    - "-v"
  interval: 2s
  timeout: 5s
  retries: 3
  startPeriod: 0s
  startInterval: 2s
  onFailure: none
`},
	} {
		objs, err := Decode("f", strings.NewReader(base+c.add+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		Default(objs[0])
		text, err := Encode(objs[0])
		if err != nil {
			t.Fatal(err)
		}
		_, got, _ := strings.Cut(string(text), "stopGrace: 10s\n")
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.add, diff)
		}
		again, err := Decode("f", strings.NewReader(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		if diff := Diff(objs[0], again[0]); diff != "" {
			t.Errorf("%s: %s", c.add, diff)
		}
	}
}
