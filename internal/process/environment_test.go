package process

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOverride(t *testing.T) {
	got := Override([]string{"A=1", "B=2"}, "B=x=y", "C=")
	if diff := cmp.Diff([]string{"A=1", "B=x=y", "C="}, got); diff != "" {
		t.Error(diff)
	}
}

func TestEnvironment(t *testing.T) {
	who := Account{Home: "/home/app"}
	for _, tc := range []struct{ env, want []string }{
		{nil, []string{"PATH=" + DefaultPath, "HOME=/home/app"}},
		{[]string{"HOME=", "PATH=/bin", "A=1"}, []string{"HOME=", "PATH=/bin", "A=1"}},
	} {
		if diff := cmp.Diff(tc.want, Environment(tc.env, who)); diff != "" {
			t.Error(diff)
		}
	}
}
