package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/console"
)

func TestStatusOf(t *testing.T) {
	booted := time.Date(2026, 11, 30, 5, 0, 0, 0, time.UTC)
	object := func(name string, s *capsulev1.WorkloadStatus) *capsulev1.Object {
		return &capsulev1.Object{Meta: &capsulev1.Meta{Kind: "Container", Name: name}, Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Status: s}}}
	}
	info := &capsulev1.InfoResponse{
		Mode: capsulev1.Mode_MODE_NORMAL, BootedAt: timestamppb.New(booted), Time: timestamppb.New(booted.Add(3*time.Hour + 90*time.Second)),
		Addresses: []string{"10.0.2.15/24", "fd00::15/64"}, MemoryTotal: 100, MemoryAvailable: 60, PermTotal: 1000, PermFree: 900,
		Pool: &capsulev1.Pool{Size: 50, Used: 40},
		Problems: []*capsulev1.Problem{
			{Severity: capsulev1.Severity_SEVERITY_CRITICAL, Id: "network", What: "no address"},
			{Severity: capsulev1.Severity_SEVERITY_CRITICAL, Id: "workload/ill", What: "it is ill", Next: "heal it"},
			{Severity: capsulev1.Severity_SEVERITY_WARNING, Id: "pool", What: "fills up", Next: "delete"},
			{Severity: capsulev1.Severity_SEVERITY_NOTE, Id: "virtualization", What: "emulated"},
		},
	}
	objects := []*capsulev1.Object{
		object("ill", &capsulev1.WorkloadStatus{Phase: capsulev1.Phase_PHASE_RUNNING, Health: capsulev1.HealthState_HEALTH_STATE_UNHEALTHY, HealthMessage: "exit code 1"}),
		object("new", nil),
		object("web", &capsulev1.WorkloadStatus{Phase: capsulev1.Phase_PHASE_BACK_OFF, Message: "ended"}),
		{Meta: &capsulev1.Meta{Kind: "Volume", Name: "photos"}, Kind: &capsulev1.Object_Volume{Volume: &capsulev1.Volume{}}},
	}
	events := []*capsulev1.Event{{Time: timestamppb.New(booted.Add(time.Hour)), Message: "container web: started"}}
	want := console.Status{
		Up: 3*time.Hour + time.Minute,
		Problems: []console.Problem{
			{ID: "workload/ill", Critical: true, What: "it is ill", Next: "heal it"},
			{ID: "pool", What: "fills up", Next: "delete", Loud: true},
		},
		Addresses: []string{"fd00::15"},
		Fills:     []console.Fill{{Name: "memory", Used: 40, Size: 100}, {Name: "storage", Used: 100, Size: 1000}, {Name: "pool", Used: 40, Size: 50}},
		Workloads: []console.Workload{{Name: "ill", State: "unhealthy", Message: "exit code 1", Bad: true}, {Name: "new", State: "pending"}, {Name: "web", State: "back-off", Message: "ended"}},
		Events:    []string{"06:00 container web: started"},
	}
	if diff := cmp.Diff(want, statusOf(info, objects, events)); diff != "" {
		t.Error(diff)
	}
	info.Mode = capsulev1.Mode_MODE_RECOVERY
	for _, w := range statusOf(info, objects, nil).Workloads {
		if w.State != "unknown" {
			t.Errorf("%v is told in recovery mode", w)
		}
	}
}
