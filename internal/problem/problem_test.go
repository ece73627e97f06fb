package problem

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
)

var booted = time.Unix(1_800_000_000, 0)

// info is a machine without a flaw, with changes.
func info(change func(*v1.InfoResponse)) *v1.InfoResponse {
	i := &v1.InfoResponse{
		Version: "1.2.3", Mode: v1.Mode_MODE_NORMAL, Addresses: []string{"10.0.0.2/24"}, Watchdog: "i6300esb", Virtualization: "kvm",
		BootedAt: timestamppb.New(booted), Time: timestamppb.New(booted.Add(time.Hour)), ClockSynchronized: true, DaemonStarts: 1,
		MemoryTotal: 1 << 30, MemoryAvailable: 1 << 29, PermTotal: 100 << 30, PermFree: 60 << 30,
		Pool:         &v1.Pool{Level: v1.PoolLevel_POOL_LEVEL_OK},
		Disks:        []*v1.DiskHealth{{Name: "sda", State: v1.DiskHealthState_DISK_HEALTH_STATE_GOOD}, {Name: "vdb", State: v1.DiskHealthState_DISK_HEALTH_STATE_SILENT}},
		Temperatures: []*v1.Temperature{{Name: "coretemp: Core 0", Celsius: 60, Critical: 100}, {Name: "acpitz", Celsius: 120}},
		Uplinks:      []*v1.UplinkState{{Name: "enp1s0", Carrier: true}},
	}
	if change != nil {
		change(i)
	}
	return i
}

func workload(name string, s *v1.WorkloadStatus) *v1.Object {
	return &v1.Object{Meta: &v1.Meta{Kind: "Container", Name: name}, Kind: &v1.Object_Workload{Workload: &v1.Workload{Status: s, Intent: &v1.Intent{}}}}
}

// lines are problems in a form to compare: severity, id, sentence, next step.
func lines(list []*v1.Problem) (out []string) {
	for _, p := range list {
		out = append(out, strings.ToLower(strings.TrimPrefix(p.GetSeverity().String(), "SEVERITY_"))+" "+p.GetId()+" | "+p.GetWhat()+" | "+p.GetNext())
	}
	return out
}

func TestOf(t *testing.T) {
	stopped := workload("off", &v1.WorkloadStatus{Phase: v1.Phase_PHASE_FAILED})
	stopped.GetWorkload().Intent.Stopped = true
	for name, tc := range map[string]struct {
		change  func(*v1.InfoResponse)
		objects []*v1.Object
		want    []string
	}{
		"nothing": {objects: []*v1.Object{workload("web", &v1.WorkloadStatus{Phase: v1.Phase_PHASE_RUNNING}), stopped, workload("new", nil)}},
		"recovery says nothing of workloads": {
			func(i *v1.InfoResponse) { i.Mode, i.ModeReason = v1.Mode_MODE_RECOVERY, "/perm can't be read" },
			[]*v1.Object{workload("web", &v1.WorkloadStatus{Phase: v1.Phase_PHASE_FAILED})},
			[]string{`critical mode | recovery mode, nothing runs: /perm can't be read | look with "capsulectl capsule logs"; "capsulectl capsule reboot" tries again, "capsulectl capsule update rollback" starts the system before`},
		},
		"disks": {
			func(i *v1.InfoResponse) {
				i.Disks = []*v1.DiskHealth{
					{Name: "sda", State: v1.DiskHealthState_DISK_HEALTH_STATE_WORN, Message: "3 sectors had to be replaced"},
					{Name: "nvme0n1", Model: "Fast", Serial: "S1", State: v1.DiskHealthState_DISK_HEALTH_STATE_FAILING, Message: "it takes no more writes"},
				}
			}, nil,
			[]string{
				`critical disk/nvme0n1 | disk nvme0n1 (Fast S1) fails: it takes no more writes | make a copy now, "capsulectl capsule backup FILE --volumes"; then replace it, "capsulectl capsule disk replace OLD NEW"`,
				`warning disk/sda | disk sda: 3 sectors had to be replaced | have a copy of what matters elsewhere, and another disk at hand`,
			},
		},
		"pool fills": {
			func(i *v1.InfoResponse) {
				i.Pool = &v1.Pool{Level: v1.PoolLevel_POOL_LEVEL_WARN, Message: "the pool is 82 % full; delete files"}
			}, nil,
			[]string{"warning pool | the pool is 82 % full | delete files"},
		},
		"pool is full": {
			func(i *v1.InfoResponse) {
				i.Pool = &v1.Pool{Level: v1.PoolLevel_POOL_LEVEL_FULL, Message: "the pool is full: writes fail; delete files"}
			}, nil,
			[]string{"critical pool | the pool is full: writes fail | delete files"},
		},
		"/perm fills": {
			func(i *v1.InfoResponse) { i.PermFree = 20 << 30 }, nil,
			[]string{`warning perm | /perm, which holds the state, images and logs, is 80 % full | "capsulectl image prune" frees what no workload uses`},
		},
		"/perm is full": {
			func(i *v1.InfoResponse) { i.PermFree = 0 }, nil,
			[]string{`critical perm | /perm, which holds the state, images and logs, is 100 % full | "capsulectl image prune" frees what no workload uses`},
		},
		"too hot": {
			func(i *v1.InfoResponse) { i.Temperatures[0].Celsius = 101 }, nil,
			[]string{"critical temperature/coretemp: Core 0 | coretemp: Core 0 is at 101 degrees, its limit is 100 | look after fans, dust and room; it slows down or turns off by itself"},
		},
		"unplugged": {
			func(i *v1.InfoResponse) { i.Addresses, i.Uplinks = nil, []*v1.UplinkState{{Name: "enp1s0"}} }, nil,
			[]string{"critical network | no address: no cable is plugged in | plug the network cable in, at both ends"},
		},
		"no lease": {
			func(i *v1.InfoResponse) { i.Addresses, i.NetworkMessage = nil, "no DHCP answer" }, nil,
			[]string{"critical network | no address: no DHCP answer | look after cable and DHCP server, or declare a fixed address"},
		},
		"not confirmed": {
			func(i *v1.InfoResponse) { i.Tentative = &v1.TentativeSystem{Left: durationpb.New(9 * time.Minute)} }, nil,
			[]string{`warning update | version 1.2.3 is not confirmed, rolled back in 9m0s | keep it with "capsulectl capsule update confirm"`},
		},
		"confirms itself, and is ill": {
			func(i *v1.InfoResponse) {
				i.Tentative = &v1.TentativeSystem{Left: durationpb.New(time.Minute), ConfirmsIn: durationpb.New(time.Second), Problems: []string{"the API does not answer"}}
			}, nil,
			[]string{"critical update | version 1.2.3 is not confirmed, rolled back in 1m0s: the API does not answer | it confirms itself once it is healthy for long enough"},
		},
		"objects": {nil, []*v1.Object{
			workload("back", &v1.WorkloadStatus{Phase: v1.Phase_PHASE_RUNNING, RolledBack: "it did not become healthy"}),
			workload("ill", &v1.WorkloadStatus{Phase: v1.Phase_PHASE_RUNNING, Health: v1.HealthState_HEALTH_STATE_UNHEALTHY, HealthMessage: "exit code 1:\nrefused"}),
			workload("loop", &v1.WorkloadStatus{Phase: v1.Phase_PHASE_BACK_OFF, Message: "ended with code 1"}),
			workload("none", &v1.WorkloadStatus{Phase: v1.Phase_PHASE_FAILED, Message: "no such image"}),
			{Meta: &v1.Meta{Kind: "Volume", Name: "photos"}, Kind: &v1.Object_Volume{Volume: &v1.Volume{Status: &v1.VolumeStatus{Phase: v1.VolumePhase_VOLUME_PHASE_FAILED, Message: "needs a check"}}}},
		}, []string{
			`critical workload/ill | workload "ill" is unhealthy: exit code 1: refused | "capsulectl workload logs ill" may tell why`,
			`critical workload/loop | workload "loop" ends again and again: ended with code 1 | "capsulectl workload logs loop" may tell why`,
			`critical workload/none | workload "none" does not run: no such image | "capsulectl workload get none" tells more`,
			`critical volume/photos | volume "photos": needs a check | "capsulectl get volume photos" tells more; workloads that mount it wait`,
			`warning workload/back | workload "back" runs as it was before: it did not become healthy | change its manifest; "capsulectl workload history back" shows what was tried`,
		}},
		"the machine's own network": {nil, []*v1.Object{
			{Meta: &v1.Meta{Kind: "Capsule", Name: "capsule"}, Kind: &v1.Object_Capsule{Capsule: &v1.Capsule{Status: &v1.CapsuleStatus{
				Phase: v1.CapsulePhase_CAPSULE_PHASE_FAILED, Message: "no such link: eth7", Reverted: "nobody confirmed it",
				Trial: &v1.NetworkTrial{Until: timestamppb.New(booted.Add(time.Hour + 42*time.Second))},
			}}}},
		}, []string{
			`warning network-trial | a change of the network is tried, taken back in 42s | "capsulectl apply" confirms it where it goes on; otherwise nothing is to be done`,
			`warning network-reverted | the change of the network was taken back: nobody confirmed it | correct what is declared: "capsulectl get capsule -o yaml"`,
			`warning configuration | the machine is not as declared: no such link: eth7 | correct what is declared: "capsulectl get capsule -o yaml"`,
		}},
		"no time": {
			func(i *v1.InfoResponse) { i.ClockSynchronized, i.Clock = false, &v1.ClockState{Error: "no answer"} }, nil,
			[]string{"warning clock | the clock was never set from the network: no answer | let it reach a time server, or declare one of yours as ntp"},
		},
		"no time yet": {func(i *v1.InfoResponse) {
			i.ClockSynchronized, i.Time = false, timestamppb.New(booted.Add(time.Minute))
		}, nil, nil},
		"drifts": {
			func(i *v1.InfoResponse) { i.Clock = &v1.ClockState{Offset: durationpb.New(-3 * time.Second)} }, nil,
			[]string{"note clock | the clock was wrong by 3s when it was last looked at | it was set right; if it goes on, the battery or the clock of the board is bad"},
		},
		"crashes, nothing armed, emulated, no memory": {
			func(i *v1.InfoResponse) {
				i.DaemonStarts, i.Watchdog, i.Virtualization, i.MemoryAvailable = 5, "", "emulated: no /dev/kvm", 1<<20
			}, nil,
			[]string{
				`warning daemon | its service was started again 4 times since the boot | "capsulectl capsule logs capsuled" tells why`,
				"warning watchdog | no watchdog is armed: what hangs stays so | look at the firmware's settings for a watchdog",
				`warning memory | less than 5 % of the memory is free | "capsulectl top" shows who takes it`,
				"note virtualization | microVMs are emulated, and slow: no /dev/kvm | switch virtualization on in the firmware; in a virtual machine, let it be nested",
			},
		},
		"a long story": {nil, []*v1.Object{workload("none", &v1.WorkloadStatus{Phase: v1.Phase_PHASE_FAILED, Message: strings.Repeat("a", 1000)})},
			[]string{`critical workload/none | workload "none" does not run: ` + strings.Repeat("a", textMax-len(`workload "none" does not run: `)-1) + `… | "capsulectl workload get none" tells more`}},
	} {
		if diff := cmp.Diff(tc.want, lines(Of(Facts{info(tc.change), tc.objects}))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Each has a next step, and an id of its own.
func TestEachProblemHasANextStep(t *testing.T) {
	all := Of(Facts{Info: &v1.InfoResponse{
		Mode: v1.Mode_MODE_NORMAL, DaemonStarts: 9, Virtualization: "emulated: ", PermTotal: 1 << 30, MemoryTotal: 1 << 30, NetworkMessage: "x",
		Pool: &v1.Pool{Level: v1.PoolLevel_POOL_LEVEL_FULL, Message: "full"}, Tentative: &v1.TentativeSystem{},
		BootedAt: timestamppb.New(booted), Time: timestamppb.New(booted.Add(time.Hour)),
	}})
	seen := map[string]bool{}
	for _, p := range all {
		if p.GetNext() == "" || p.GetWhat() == "" || seen[p.GetId()] {
			t.Errorf("%v", p)
		}
		seen[p.GetId()] = true
	}
	if len(all) < 9 {
		t.Errorf("only %v", lines(all))
	}
}
