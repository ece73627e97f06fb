package server

import (
	"context"
	"fmt"
	"testing"

	capsulev1 "capsule/api/capsule/v1"
)

// many is as many workloads as the capsule is measured with (test/bench).
const many = 200

// BenchmarkReads makes calls over one TLS connection, one after the other.
func BenchmarkReads(b *testing.B) {
	box := newBox(b, nil)
	conn := box.dial(b, capsulev1.Role_ROLE_ADMIN)
	objects := capsulev1.NewObjectServiceClient(conn)
	var objs []*capsulev1.Object
	for i := range many {
		objs = append(objs, web(fmt.Sprintf("bench-%03d", i)))
	}
	if _, err := objects.Apply(b.Context(), &capsulev1.ApplyRequest{Objects: objs}); err != nil {
		b.Fatal(err)
	}
	for name, read := range map[string]func(context.Context) error{
		"get": func(ctx context.Context) error {
			_, err := objects.Get(ctx, &capsulev1.GetRequest{Name: "bench-100"})
			return err
		},
		"list": func(ctx context.Context) error {
			_, err := objects.List(ctx, &capsulev1.ListRequest{})
			return err
		},
		"info": func(ctx context.Context) error {
			_, err := capsulev1.NewCapsuleServiceClient(conn).Info(ctx, &capsulev1.InfoRequest{})
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := read(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkApply changes one workload of many: with the disk's time.
func BenchmarkApply(b *testing.B) {
	box := newBox(b, nil)
	objects := capsulev1.NewObjectServiceClient(box.dial(b, capsulev1.Role_ROLE_ADMIN))
	var objs []*capsulev1.Object
	for i := range many {
		objs = append(objs, web(fmt.Sprintf("bench-%03d", i)))
	}
	if _, err := objects.Apply(b.Context(), &capsulev1.ApplyRequest{Objects: objs}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		objs[n%many].GetWorkload().Spec.Env = map[string]string{"N": fmt.Sprint(n)}
		if _, err := objects.Apply(b.Context(), &capsulev1.ApplyRequest{Objects: objs[n%many : n%many+1]}); err != nil {
			b.Fatal(err)
		}
	}
}
