package container

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"capsule/internal/instance"
	"capsule/internal/workload"
)

// stuck is a runtime whose ended tasks can't be deleted, as with a shim that
// hangs: nothing that a real one can be brought to. The methods that a list does
// not need are those of nil.
type stuck struct {
	containers.Store
	all []containers.Container
}

func (s *stuck) List(context.Context, ...string) ([]containers.Container, error) { return s.all, nil }

func (s *stuck) Get(_ context.Context, id string) (containers.Container, error) {
	for _, c := range s.all {
		if c.ID == id {
			return c, nil
		}
	}
	return containers.Container{}, errdefs.ErrNotFound
}

func (s *stuck) Update(_ context.Context, c containers.Container, _ ...string) (containers.Container, error) {
	return c, nil
}

type stuckTasks struct {
	tasks.TasksClient
	processes map[string]*tasktypes.Process
}

func (s *stuckTasks) List(context.Context, *tasks.ListTasksRequest, ...grpc.CallOption) (*tasks.ListTasksResponse, error) {
	r := &tasks.ListTasksResponse{}
	for _, p := range s.processes {
		r.Tasks = append(r.Tasks, p)
	}
	return r, nil
}

func (s *stuckTasks) Get(_ context.Context, r *tasks.GetRequest, _ ...grpc.CallOption) (*tasks.GetResponse, error) {
	return &tasks.GetResponse{Process: s.processes[r.ContainerID]}, nil
}

func (s *stuckTasks) Kill(context.Context, *tasks.KillRequest, ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (s *stuckTasks) Wait(context.Context, *tasks.WaitRequest, ...grpc.CallOption) (*tasks.WaitResponse, error) {
	return &tasks.WaitResponse{}, nil
}

func (s *stuckTasks) Delete(context.Context, *tasks.DeleteTaskRequest, ...grpc.CallOption) (*tasks.DeleteResponse, error) {
	return nil, errors.New("the shim does not answer")
}

// labels of a record, as a version that knew one kind only made them.
func labels(id workload.ID) map[string]string {
	return map[string]string{
		instance.LabelName: id.Name, instance.LabelUID: id.UID,
		instance.LabelGeneration: strconv.FormatUint(id.Generation, 10),
	}
}

// One instance that can't be cleared away must not hide the others.
func TestListDespiteOneStuck(t *testing.T) {
	bad := workload.ID{Name: "bad", UID: "0123456789", Generation: 1}
	good := workload.ID{Name: "good", UID: "abcdef0123", Generation: 2}
	end := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	store := &stuck{}
	for _, id := range []workload.ID{bad, good} {
		store.all = append(store.all, containers.Container{ID: instance.RecordID(id), Labels: labels(id)})
	}
	client, err := containerd.New("", containerd.WithServices(
		containerd.WithContainerStore(store),
		containerd.WithTaskClient(&stuckTasks{processes: map[string]*tasktypes.Process{
			instance.RecordID(bad):  {ID: instance.RecordID(bad), Pid: 1 << 30, Status: tasktypes.Status_STOPPED, ExitStatus: 3, ExitedAt: timestamppb.New(end)},
			instance.RecordID(good): {ID: instance.RecordID(good), Pid: 1 << 30, Status: tasktypes.Status_RUNNING},
		}})))
	if err != nil {
		t.Fatal(err)
	}
	list, err := New(client, Options{}).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[1].ID != good || list[1].State != workload.Running {
		t.Errorf("got %+v", list)
	}
	if o := list[0]; o.ID != bad || o.State != workload.Ended || o.ExitCode != 3 || !o.FinishedAt.Equal(end) {
		t.Errorf("stuck one is listed as %+v", o)
	}
}
