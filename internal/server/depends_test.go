package server

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
)

func dependent(name string, on ...string) *capsulev1.Object {
	o := web(name)
	o.GetWorkload().Spec.DependsOn = on
	return o
}

// Workloads that would wait for each other are refused, in one apply and in
// several; nothing of it is kept.
func TestApplyRefusesCircles(t *testing.T) {
	b := newBox(t, nil)
	if _, err := b.apply(t, dependent("a", "b"), dependent("b", "c"), dependent("c")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		objs []*capsulev1.Object
		want string
	}{
		{[]*capsulev1.Object{dependent("c", "a")}, `dependsOn of workload "c": none would ever start, as each waits for the next: c → a → b → c; take one of these out`},
		{[]*capsulev1.Object{dependent("x", "y"), dependent("y", "z", "x")}, `dependsOn of workload "x": none would ever start, as each waits for the next: x → y → x; take one of these out`},
		{[]*capsulev1.Object{dependent("c", "c")}, `dependsOn[0]: "c" can't wait for itself`},
	} {
		_, err := b.apply(t, test.objs...)
		if s := status.Convert(err); s.Code() != codes.InvalidArgument || !strings.Contains(s.Message(), test.want) {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
	if objs, err := b.store.List(""); err != nil || len(objs) != 3 || objs[2].GetMeta().GetGeneration() != 1 {
		t.Errorf("left %v, %v", objs, err)
	}
	// The circle is turned round in one apply.
	if _, err := b.apply(t, dependent("a"), dependent("c", "a")); err != nil {
		t.Error(err)
	}
}

// What is waited for may come later; the operator is told.
func TestApplyWarnsOfWhatIsNotDeclared(t *testing.T) {
	b := newBox(t, nil)
	got, err := b.apply(t, dependent("web", "db", "cache"), dependent("cache"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`it waits for workload "db", which is not declared`}, got.Results[0].Warnings); diff != "" {
		t.Error(diff)
	}
	if got, err = b.apply(t, dependent("db")); err != nil || len(got.Results[0].Warnings) > 0 {
		t.Errorf("%v, %v", got, err)
	}
}
