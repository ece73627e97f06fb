package main

import (
	"maps"
	"slices"
	"strings"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

func isSecret(o *capsulev1.Object) bool { return o.GetMeta().GetKind() == manifest.KindSecret }

var secretColumns = []string{"SECRET", "KEYS", "USED BY", "AGE", "MESSAGE"}

// secretRow has the names of a secret's values; nobody is given the values.
func secretRow(o *capsulev1.Object, now time.Time) []string {
	m, s := o.GetMeta(), o.GetSecret()
	return []string{
		m.GetName(), strings.Join(slices.Sorted(maps.Keys(s.GetSpec().GetData())), ", "), strings.Join(s.GetStatus().GetUsers(), ", "),
		age(m.GetCreatedAt().AsTime(), now), s.GetStatus().GetMessage(),
	}
}
