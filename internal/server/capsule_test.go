package server

import (
	"testing"

	capsulev1 "capsule/api/capsule/v1"
)

// What is degraded comes with the machine, of objects too, but not in recovery mode.
func TestInfoTellsProblems(t *testing.T) {
	b := newBox(t, nil)
	conn := b.dial(t, capsulev1.Role_ROLE_ADMIN)
	made, err := b.apply(t, web("ill"))
	if err != nil {
		t.Fatal(err)
	}
	failed := &capsulev1.WorkloadStatus{Generation: 1, Phase: capsulev1.Phase_PHASE_FAILED, Message: "no such image"}
	if err := b.store.PutStatus(made.GetResults()[0].GetObject().GetMeta().GetUid(), failed); err != nil {
		t.Fatal(err)
	}
	worst := func() *capsulev1.Problem {
		info, err := capsulev1.NewCapsuleServiceClient(conn).Info(limit(t), &capsulev1.InfoRequest{})
		if err != nil || len(info.GetProblems()) == 0 {
			t.Fatalf("%v, %v", info, err)
		}
		return info.GetProblems()[0]
	}
	if p := worst(); p.GetId() != "workload/ill" || p.GetSeverity() != capsulev1.Severity_SEVERITY_CRITICAL || p.GetNext() == "" {
		t.Errorf("%v", p)
	}
	b.machine.reason = "/perm can't be read"
	if p := worst(); p.GetId() != "mode" {
		t.Errorf("%v", p)
	}
}
