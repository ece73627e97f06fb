package manifest

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	yaml "go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/reflect/protoreflect"

	capsulev1 "capsule/api/capsule/v1"
)

// TestManualQuotesLimits checks the table of limits in the manual.
func TestManualQuotesLimits(t *testing.T) {
	quotes(t, "workloads.md", []string{
		fmt.Sprintf("| a manifest | %s |", strings.Replace(FormatSize(MaxBytes), "MiB", " MiB", 1)),
		fmt.Sprintf("| objects in one apply | %d |", MaxObjects),
		fmt.Sprintf("| ports of a workload | %d |", portsMax),
		fmt.Sprintf("| mounts of a workload | %d |", mountsMax),
		fmt.Sprintf("| variables of a workload | %d |", envMax),
		fmt.Sprintf("| name | %d bytes |", NameMax),
		fmt.Sprintf("by default none; at least %d MiB | a limit, by default 512 MiB; at least %d MiB |", MemoryMin>>20, vmMemoryMin>>20),
		fmt.Sprintf("the number of processors inside: at most %d, and no more than the capsule has |", vmCPUsMax/1000),
		fmt.Sprintf("| mounts | at most %d | at most %d:", mountsMax, vmMountsMax),
		fmt.Sprintf("from the stop signal to SIGKILL, at most `%s` |", formatDuration(GraceMax)),
		fmt.Sprintf("| `health.interval` | time | `%s` | from the end of a check to the next, `%s` to `%s`;", formatDuration(HealthInterval), formatDuration(HealthIntervalMin), formatDuration(HealthIntervalMax)),
		fmt.Sprintf("| `health.timeout` | time | `%s` | a check that takes longer has failed, `%s` to `%s`;", formatDuration(HealthTimeout), formatDuration(HealthTimeoutMin), formatDuration(HealthTimeoutMax)),
		fmt.Sprintf("| `health.retries` | number | `%d` | failures in a row that make it unhealthy, at most %d |", HealthRetries, HealthRetriesMax),
		fmt.Sprintf("failures don't count, at most `%s` |", strings.TrimSuffix(HealthPeriodMax.String(), "0m0s")),
		fmt.Sprintf("| `health.startInterval` | time | `%s` |", formatDuration(HealthStartInterval)),
		fmt.Sprintf("| names in `dependsOn` | %d |", dependsMax),
		fmt.Sprintf("| files of a workload | %d, of %d KiB each, %d KiB together |", filesMax, fileBytesMax>>10, FilesBytesMax>>10),
		fmt.Sprintf("| values of a secret | %d, of %d KiB each, %d KiB together |", secretKeysMax, secretValueMax>>10, secretBytesMax>>10),
		fmt.Sprintf("| `resources.memory` | size | no limit; of a microVM `512MiB` | at least %d MiB.", MemoryMin>>20),
	})
	quotes(t, "volumes.md", []string{
		fmt.Sprintf("| size of a volume | %d MiB to %d TiB |", VolumeMin>>20, VolumeMax>>40),
		fmt.Sprintf("rounded up to whole extents of %d MiB", extentBytes>>20),
		fmt.Sprintf("`%s` to `%s`", formatDuration(everyMin), formatDuration(everyMax)),
		fmt.Sprintf("| `snapshots.keep` | number | `%d` |", keepDefault),
		fmt.Sprintf("| mounts of one workload | %d; of a microVM", mountsMax),
		fmt.Sprintf("| snapshots kept by a schedule | %d |", keepMax),
	})
}

// manualPages are those on which each kind of object is told of, by its name in Object.
var manualPages = map[string]string{"workload": "workloads.md", "volume": "volumes.md", "secret": "workloads.md", "capsule": "configuration.md"}

// TestManualHasEachField wants a row and an example of each field that a manifest
// may have: "ports.hostPort" is a key of an entry of ports.
func TestManualHasEachField(t *testing.T) {
	kinds := (&capsulev1.Object{}).ProtoReflect().Descriptor().Oneofs().ByName("kind").Fields()
	for i := range kinds.Len() {
		kind := kinds.Get(i)
		page := manualPages[kind.JSONName()]
		if page == "" {
			t.Errorf("no page of docs tells of %s: write one, and name it in manualPages", kind.Message().Name())
			continue
		}
		text, err := os.ReadFile("../../docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		used := usedFields(t, page, string(text))
		for path, words := range specFields(kind.Message().Fields().ByName("spec").Message(), "") {
			row := fmt.Sprintf("| `%s` | %s | ", path, words)
			if path == "health.none" {
				row = "| `health: none` | | | "
			}
			if !strings.Contains(string(text), row) {
				t.Errorf("docs/%s has no row for %s, which begins %q", page, path, row)
			}
			if !used[path] {
				t.Errorf("docs/%s has no example of %s: no block of yaml in it has the field", page, path)
			}
		}
	}
}

// specFields are the paths of all fields as a manifest has them, with the words that
// the manual has for their types.
func specFields(m protoreflect.MessageDescriptor, prefix string) map[string]string {
	all := map[string]string{}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		path := prefix + f.JSONName()
		all[path] = fieldType(f)
		switch {
		case isWithinNetwork(f):
			delete(all, path)
			all[fieldNetwork+"."+fieldLAN] = "text"
		case m.Name() == "WorkloadSpec" && path == fieldNetwork:
			all[path], all[fieldNetwork+"."+fieldMode] = "text or fields", "text"
		case m.Name() == "WorkloadSpec" && path == "health":
			all[path] = "fields, or `none`"
		}
		if f.Message() != nil && !f.IsMap() && f.Message().FullName() != durationName {
			maps.Copy(all, specFields(f.Message(), path+"."))
		}
	}
	return all
}

func fieldType(f protoreflect.FieldDescriptor) string {
	switch {
	case f.IsMap():
		return "map"
	case f.IsList():
		return "list"
	case f.Kind() == protoreflect.BoolKind:
		return "`true` or `false`"
	case f.Kind() == protoreflect.StringKind:
		return "text"
	case f.Message() != nil && f.Message().FullName() == durationName:
		return "time"
	case f.Message() != nil:
		return "fields"
	case format(f) == capsulev1.Format_FORMAT_SIZE:
		return "size"
	case format(f) == capsulev1.Format_FORMAT_CPUS:
		return "processors"
	}
	return "number"
}

// usedFields are the paths of all fields in the examples of a page, each of which is
// a manifest without a fault.
func usedFields(t *testing.T, page, text string) map[string]bool {
	t.Helper()
	used := map[string]bool{}
	for part := range strings.SplitSeq(text, "\n```yaml\n") {
		example, _, found := strings.Cut(part, "\n```\n")
		if !found || !strings.HasPrefix(example, "# ") {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(example, "# "), "\n")
		if _, err := Decode(page+": "+name, strings.NewReader(example)); err != nil {
			t.Error(err)
		}
		for document := range strings.SplitSeq(example, "\n---\n") {
			var value any
			if err := yaml.Unmarshal([]byte(document), &value); err != nil {
				t.Errorf("%s: %v", page, err)
			}
			use(used, "", value)
		}
	}
	return used
}

// use notes the keys of a value, and of all within it.
func use(used map[string]bool, path string, value any) {
	used[path] = true
	switch value := value.(type) {
	case map[string]any:
		for key, v := range value {
			use(used, strings.TrimPrefix(path+"."+key, "."), v)
		}
	case []any:
		for _, v := range value {
			use(used, path, v)
		}
	case string:
		used["health.none"] = used["health.none"] || path == "health" && value == healthNone
	}
}

// TestManualNetworks checks the page's examples, and that they are what is shown of
// them where it says so.
func TestManualNetworks(t *testing.T) {
	text, err := os.ReadFile("../../docs/networking.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := 0
	for part := range strings.SplitSeq(string(text), "```yaml\n") {
		example, _, found := strings.Cut(part, "```\n")
		if name, _, _ := strings.Cut(example, "\n"); found && strings.HasSuffix(name, ".yaml") {
			examples++
			if _, err := Decode(name, strings.NewReader(example)); err != nil {
				t.Error(err)
			}
		}
	}
	if examples < 4 {
		t.Errorf("%d examples", examples)
	}
	quotes(t, "networking.md", []string{
		fmt.Sprintf("| ports of a workload, a range counted once | %d |", portsMax),
		fmt.Sprintf("| ports of a workload in ranges that lead to other numbers | %d |", shiftedMax),
		fmt.Sprintf("| a changed network that nobody confirms | %d minute |", TrialMax/time.Minute),
	})
}

func quotes(t *testing.T, page string, rows []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if !strings.Contains(string(text), row) {
			t.Errorf("docs/%s lacks %q", page, row)
		}
	}
}
