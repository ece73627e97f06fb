package manifest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
)

const whole = `kind: Container
name: web
image: registry.lan:5000/web:1
command: [/bin/web, --listen=:80]
args:
  - "-v"
  - 010
env:
  A: yes
  B: NO
  C: on
  D: 1.10
  E: 1e3
  F: 010
  G: "null"
  H: 2024-01-01
  I: "two\nlines"
  J: |
    block
ports:
  - 8080:80
  - 127.0.0.1:8081:80/udp
  - "[::1]:8082:80"
  - {hostPort: 8083, port: 80, protocol: udp, address: 10.0.0.1}
  - 49100:22
network: bridge
resources:
  memory: 1.5GiB
  cpus: 1.5
  pids: 100
  io: {read: 20MB, write: 10MiB, readOperations: 500, writeOperations: 10}
  disk: 2GiB
restart: on-failure
user: "1000:1000"
workingDir: /srv
stopSignal: SIGRTMIN+3
stopGrace: 1m30s
requiredForUpdate: true
health:
  http: {port: 80, path: "/up?deep=1", scheme: https}
  interval: 10s
  timeout: 500ms
  retries: 5
  startPeriod: 1m
  startInterval: 2s
  onFailure: none
dependsOn: [db, cache]
rollback: false
`

func wholeObject() *capsulev1.Object {
	return &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: "Container", Name: "web"},
		Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Spec: &capsulev1.WorkloadSpec{
			Image:   "registry.lan:5000/web:1",
			Command: []string{"/bin/web", "--listen=:80"},
			Args:    []string{"-v", "010"},
			Env: map[string]string{
				"A": "yes", "B": "NO", "C": "on", "D": "1.10", "E": "1e3", "F": "010", "G": "null",
				"H": "2024-01-01", "I": "two\nlines", "J": "block\n",
			},
			Ports: []*capsulev1.Port{
				{HostPort: 8080, Port: 80},
				{HostPort: 8081, Port: 80, Protocol: "udp", Address: "127.0.0.1"},
				{HostPort: 8082, Port: 80, Address: "::1"},
				{HostPort: 8083, Port: 80, Protocol: "udp", Address: "10.0.0.1"},
				{HostPort: 49100, Port: 22},
			},
			Network: "bridge",
			Resources: &capsulev1.Resources{Memory: 3 << 29, Cpus: 1500, Pids: 100, Disk: 2 << 30,
				Io: &capsulev1.IO{Read: 20e6, Write: 10 << 20, ReadOperations: 500, WriteOperations: 10}},
			Restart:    "on-failure",
			User:       "1000:1000",
			WorkingDir: "/srv",
			StopSignal: "SIGRTMIN+3",
			StopGrace:  &durationpb.Duration{Seconds: 90},

			RequiredForUpdate: true,
			Health: &capsulev1.Health{
				Http:     &capsulev1.HTTPCheck{Port: 80, Path: "/up?deep=1", Scheme: "https"},
				Interval: durationpb.New(10 * time.Second), Timeout: durationpb.New(500 * time.Millisecond), Retries: 5,
				StartPeriod: durationpb.New(time.Minute), StartInterval: durationpb.New(2 * time.Second), OnFailure: "none",
			},
			DependsOn: []string{"db", "cache"},
			Rollback:  proto.Bool(false),
		}}},
	}
}

func TestDecode(t *testing.T) {
	for name, source := range map[string]string{
		"plain":           whole,
		"CRLF":            strings.ReplaceAll(whole, "\n", "\r\n"),
		"BOM":             "\uFEFF" + whole,
		"empty documents": "---\n---\n# nothing\n---\n" + whole + "---\n...\n",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Decode("web.yaml", strings.NewReader(source))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]*capsulev1.Object{wholeObject()}, got, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEncodeIsReadBack(t *testing.T) {
	text, err := Encode(wholeObject())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/whole.yaml", text)
	got, err := Decode("x", strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wholeObject(), got[0], protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
}

// base is a correct manifest that each refused line is added to, as line 4.
const base = "kind: Container\nname: web\nimage: web\n"

func TestRefused(t *testing.T) {
	for _, c := range []struct{ add, want string }{
		// Names.
		{"prots: []", `4:1: unknown field "prots"; did you mean "ports"?`},
		{"mount: []", `4:1: unknown field "mount"; did you mean "mounts"?`},
		{"Network: host", `4:1: unknown field "Network"; did you mean "network"?`},
		{"ports:\n- {hostport: 80, port: 80}", `5:4: unknown field "hostport"; did you mean "hostPort"?`},
		{"environment: {}", `4:1: unknown field "environment"; it is called "env" here`},
		{"memory: 1GiB", `4:1: unknown field "memory"; it belongs under "resources"`},
		{"hostport: 80", `4:1: unknown field "hostport"; did you mean "hostPort" under "ports"?`},
		{"zzzzzzzzz: 1", `4:1: unknown field "zzzzzzzzz"; known are kind, name, image, `},
		{"image: other", `4:1: field "image" is given twice, first in line 3`},
		{"env:\n  A: 1\n  A: 2", `6:3: field "A" is given twice, first in line 5`},
		// Numbers and ports.
		{"ports: [08080:80]", `4:9: ports[0]: want a port as a decimal number, found "08080"`},
		{"ports: [0x1F90:80]", `4:9: ports[0]: want a port as a decimal number, found "0x1F90"`},
		{"ports: [1_000:80]", `4:9: ports[0]: want a port as a decimal number, found "1_000"`},
		{"ports: [0:80]", `4:9: ports[0]: port 0 is not within 1 to 65535`},
		{"ports: [-1:80]", `4:9: ports[0]: port -1 is not within 1 to 65535`},
		{"ports: [65536:80]", `4:9: ports[0]: port 65536 is not within 1 to 65535`},
		{"ports: [8080]", `4:9: ports[0]: "8080": want "[ADDRESS:]HOSTPORT[-END]:PORT[-END][/PROTOCOL]"`},
		{"ports: [8080:80/sctp]", `4:9: ports[0]: unknown protocol "sctp"; want tcp or udp`},
		{"ports: [lan:8080:80]", `4:9: ports[0]: "lan:8080:80": "lan" is no address; IPv6 stands in brackets`},
		{"ports: ['::1:8080:80']", `4:9: ports[0]: "::1:8080:80": "::1" is no address; IPv6 stands in brackets`},
		{"ports:\n- hostPort: 08080\n  port: 80", `5:13: ports[0].hostPort: want a decimal number, found "08080"`},
		{"ports:\n- hostPort: 0x1F90\n  port: 80", `5:13: ports[0].hostPort: want a decimal number, found "0x1F90"`},
		{"ports:\n- hostPort: 1_000\n  port: 80", `5:13: ports[0].hostPort: want a decimal number, found "1_000"`},
		{"ports:\n- hostPort: 0\n  port: 80", `5:13: ports[0].hostPort: 0 is out of range`},
		{"ports:\n- hostPort: -1\n  port: 80", `5:13: ports[0].hostPort: -1 is out of range`},
		{"ports:\n- hostPort: 65536\n  port: 80", `5:13: ports[0].hostPort must be within 1 and 65535`},
		{"ports:\n- hostPort: '8080'\n  port: 80", `5:13: ports[0].hostPort: want a number without quotes, found "8080"`},
		{"ports:\n- hostPort: 8080", `5:3: ports[0].port must be within 1 and 65535`},
		{"ports: [8080:80, 8080:81]", `4:18: ports[1] publishes 8080/tcp, which ports[0] does already`},
		{"ports: [8080:80, 127.0.0.1:8080:81]", `4:18: ports[1] publishes 8080/tcp on 127.0.0.1, which ports[0] does already`},
		{"ports: [50000:80]", `4:9: ports[0]: port 50000/tcp is the capsule's own API`},
		{"network: none\nports: [8080:80]", `5:8: ports can't be published with network "none"`},
		{"resources: {pids: 0}", `4:19: resources.pids: 0 is out of range`},
		{"resources: {pids: 1e3}", `4:19: resources.pids: want a decimal number, found "1e3"`},
		// Text.
		{"env:\n  G: null", `5:6: env.G: "null" is YAML's word for nothing; quote it if it is meant as text`},
		{"env:\n  G: ~", `5:6: env.G: "~" is YAML's word for nothing; quote it if it is meant as text`},
		{"env:\n  G:", `5:5: env.G: "" is YAML's word for nothing; quote it if it is meant as text`},
		{"env:\n  G: [1]", `5:6: env.G: want text, found a list`},
		{"env:\n  'A=B': c", `5:10: env: name "A=B" must have no "=", space or control character`},
		{"env: A=1", `4:6: env: want NAME: value pairs, found "A=1"`},
		{"command: nginx -g", `4:10: command: want a list, found "nginx -g"`},
		{"command: []", `4:10: command: an empty list replaces nothing; remove the line`},
		{"ports:", `4:7: ports has no value; give one or remove the line`},
		{"env: {A: \"x\\0y\"}", `4:10: env: value of "A": has a NUL character, which no program can be given`},
		// Sizes.
		{"resources: {memory: 10G}", `4:21: resources.memory: size "10G" may mean 10GB or 10GiB; write the one that is meant`},
		{"resources: {memory: 1Github}", `4:21: resources.memory: unknown unit "Github"; known are TiB, TB, GiB, GB, MiB, MB, KiB, KB, B`},
		{"resources: {memory: -1GiB}", `4:21: resources.memory: size "-1GiB" must be above zero; leave the field out for no limit`},
		{"resources: {memory: 0}", `4:21: resources.memory: size "0" must be above zero; leave the field out for no limit`},
		{"resources: {memory: -1}", `4:21: resources.memory: size "-1" has no unit`},
		{"resources: {memory: 9999999999GiB}", `4:21: resources.memory: size "9999999999GiB" is larger than 9223372036854775807 bytes`},
		{"resources: {memory: 1MiB}", `4:21: resources.memory must be at least 6MiB`},
		{"resources: {cpus: 1.2345}", `4:19: resources.cpus: want a number of processors`},
		{"resources: {cpus: 0.001}", `4:19: resources.cpus must be within 0.01 and 512`},
		{"resources: {disk: 0}", `4:19: resources.disk: size "0" must be above zero`},
		{"resources: {disk: 31MiB}", `4:19: resources.disk must be within 32MiB and 16TiB`},
		{"resources: {io: 10MB}", `4:17: resources.io: want fields, found "10MB"`},
		{"resources: {io: {read: 10}}", `4:24: resources.io.read: size "10" has no unit`},
		{"resources: {io: {read: 0}}", `4:24: resources.io.read: size "0" must be above zero; leave the field out for no limit`},
		{"resources: {io: {write: 63KiB}}", `4:25: resources.io.write must be within 64KiB and 1TiB`},
		{"resources: {io: {readOperations: 9}}", `4:34: resources.io.readOperations must be within 10 and 1000000000 in a second`},
		{"resources: {io: {writeOperations: 1MB}}", `4:35: resources.io.writeOperations: want a decimal number, found "1MB"`},
		{"resources: {io: {device_write_bps: 1MB}}", `4:18: unknown field "device_write_bps"; it is called "write" here`},
		{"resources: 1GiB", `4:12: resources: want fields, found "1GiB"`},
		// Words.
		{"network: brigde", `4:10: unknown network "brigde"; did you mean "bridge"?`},
		{"restart: unless-stopped", `4:10: unknown restart policy "unless-stopped"; want one of always, on-failure, never`},
		{"stopSignal: SIGFOO", `4:13: stopSignal: unknown signal "SIGFOO"`},
		{"stopSignal: 65", `4:13: stopSignal: signal 65 is out of range`},
		{"stopGrace: 10", `4:12: stopGrace: want a time with its unit such as "10s" or "1m30s", found "10"`},
		{"stopGrace: 1d", `4:12: stopGrace: want a time in h, m, s or ms, found "1d"; a day is written "24h"`},
		{"stopGrace: 6m", `4:12: stopGrace must be within 0s and 5m`},
		{"requiredForUpdate: yes", `4:20: requiredForUpdate: want true or false, found "yes"`},
		{"requiredForUpdate: 'true'", `4:20: requiredForUpdate: want true or false, found "true"`},
		{"restart: never\nrequiredForUpdate: true", `5:20: requiredForUpdate: with restart "never" it does not start again with the capsule`},
		{"requiredForUpdates: true", `4:1: unknown field "requiredForUpdates"; did you mean "requiredForUpdate"?`},
		{"required: true", `4:1: unknown field "required"; it is called "requiredForUpdate" here`},
		{"rollback: off", `4:11: rollback: want true or false, found "off"`},
		{"rollback: true\nhealth: none", `4:11: rollback: with health "none" nothing tells whether a change is well`},
		{"rollback: true\nrestart: never", `4:11: rollback: with restart "never" what ran before is not started again`},
		{"workingDir: srv", `4:13: workingDir: path "srv" must be absolute`},
		{"user: 'a:'", `4:7: user "a:": want "user", "uid", "user:group" or "uid:gid"`},
		// Health.
		{"health: off", `4:9: health: want "none" or fields such as "http", found "off"`},
		{"health: []", `4:9: health: want "none" or fields, found a list`},
		{"health: {}", `4:9: health: want one of exec, http, tcp; or "none" for no check`},
		{"health: {interval: 5s}", `4:9: health: want one of exec, http, tcp`},
		{"health: {htp: {port: 80}}", `4:10: unknown field "htp"; did you mean "http"?`},
		{"health: {exec: curl -f x}", `4:16: health.exec: want a list, found "curl -f x"; write each word as an entry, or [/bin/sh, -c, "…"]`},
		{"health: {exec: []}", `4:16: health.exec: an empty list`},
		{"health: {exec: ['']}", `4:17: health.exec[0] is empty, want a program`},
		{"health: {test: [CMD, x]}", `4:10: unknown field "test"; it is called "exec" here`},
		{"health: {exec: [CMD, x]}", `4:17: health.exec[0]: "CMD" is a word of Dockerfiles; begin with the program`},
		{"health: {exec: [CMD-SHELL, x]}", `4:17: health.exec[0]: "CMD-SHELL" is a word of Dockerfiles; write [/bin/sh, -c, "…"]`},
		{"health: {exec: [NONE]}", `4:17: health.exec[0]: "NONE" is a word of Dockerfiles; write "health: none"`},
		{"health: {http: {port: 80}, tcp: {port: 80}}", `4:33: health: http and tcp are given; want exactly one of exec, http, tcp`},
		{"health: {http: {path: /}}", `4:16: health.http.port must be within 1 and 65535`},
		{"health: {http: 80}", `4:16: health.http: want fields, found "80"`},
		{"health: {http: {port: 80, path: up}}", `4:33: health.http.path "up" must begin with "/"`},
		{"health: {http: {port: 80, path: '/a b'}}", `4:33: health.http.path "/a b" must have no space`},
		{"health: {http: {port: 80, scheme: htps}}", `4:35: health.http: unknown scheme "htps"; did you mean "https"?`},
		{"health: {tcp: {port: 70000}}", `4:22: health.tcp.port must be within 1 and 65535`},
		{"health: {tcp: {port: 80}, interval: 30}", `4:37: health.interval: want a time with its unit`},
		{"health: {tcp: {port: 80}, interval: 10ms}", `4:37: health.interval must be within 1s and 1h`},
		{"health: {tcp: {port: 80}, timeout: 0s}", `4:36: health.timeout must be within 100ms and 5m`},
		{"health: {tcp: {port: 80}, startPeriod: 25h}", `4:40: health.startPeriod must be within 0s and 24h`},
		{"health: {tcp: {port: 80}, start_period: 2s}", `4:27: unknown field "start_period"; it is called "startPeriod" here`},
		{"health: {tcp: {port: 80}, retries: 0}", `4:36: health.retries: 0 is out of range`},
		{"health: {tcp: {port: 80}, retries: 101}", `4:36: health.retries must be within 1 and 100`},
		{"health: {tcp: {port: 80}, onFailure: restat}", `4:38: health: unknown onFailure "restat"; did you mean "restart"?`},
		{"health: {none: true, retries: 2}", `4:16: health.none stands alone`},
		{"network: none\nhealth: {tcp: {port: 80}}", `5:15: health.tcp: with network "none" the workload has no address; want exec`},
		{"restart: never\nhealth: {tcp: {port: 80}, onFailure: restart}", `5:38: health.onFailure "restart": restart is "never"`},
		{"healthcheck: none", `4:1: unknown field "healthcheck"; it is called "health" here`},
		{"depends_on: [db]", `4:1: unknown field "depends_on"; it is called "dependsOn" here`},
		{"dependsOn: db", `4:12: dependsOn: want a list, found "db"`},
		{"dependsOn: [web]", `4:13: dependsOn[0]: "web" can't wait for itself`},
		{"dependsOn: [db, db]", `4:17: dependsOn[1]: "db" is given twice`},
		{"dependsOn: [DB]", `4:13: dependsOn[0]: name "DB" must be lower-case`},
		// YAML beyond values.
		{"env: &e {A: x}", `4:6: anchors and aliases are not supported: write the value out`},
		{"env: {<<: {A: x}}", `4:7: merge keys are not supported: write the fields out`},
		{"user: !!str 1", `4:7: tags such as "!!str" are not supported: quote the value to make it text`},
		{"env: {A", `not valid YAML: `},
		{"\tuser: x", `not valid YAML: `},
	} {
		t.Run(c.add, func(t *testing.T) {
			objs, err := Decode("f.yaml", strings.NewReader(base+c.add+"\n"))
			if objs != nil || !errdefs.IsInvalidArgument(err) {
				t.Fatalf("got %v, %v", objs, err)
			}
			if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "f.yaml:") {
				t.Errorf("got  %s\nwant %s", err, c.want)
			}
			var all *Errors
			if !errors.As(err, &all) {
				t.Fatalf("got %T", err)
			}
			if n := len(all.All); n != 1 {
				t.Errorf("%d errors for one fault:\n%s", n, err)
			}
		})
	}
}

// One word of the example makes it a microVM.
func TestExampleFlips(t *testing.T) {
	text, err := os.ReadFile("../../examples/web.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, source := range []string{string(text), strings.Replace(string(text), "\nkind: Container\n", "\nkind: MicroVM\n", 1)} {
		objs, err := Decode("web.yaml", strings.NewReader(source))
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, objs[0].Meta.Kind)
	}
	if diff := cmp.Diff([]string{"Container", "MicroVM"}, kinds); diff != "" {
		t.Error(diff)
	}
}

// Where a field can't mean the same in a MicroVM it is refused with the reason,
// and only there.
func TestRefusedOfMicroVMs(t *testing.T) {
	slots := ""
	for i := range vmMountsMax + 1 {
		slots += fmt.Sprintf("\n- 'data%d:/data%d'", i, i)
	}
	for _, c := range []struct{ add, want string }{
		{"network: host", `f:4:10: network "host": a microVM has its own kernel and cannot share the capsule's network; use bridge`},
		{"resources: {memory: 15MiB}", `f:4:21: resources.memory must be at least 16MiB in a MicroVM`},
		{"resources: {memory: 1MiB}", `f:4:21: resources.memory must be at least 16MiB in a MicroVM`},
		{"resources: {cpus: 64.5}", `f:4:19: resources.cpus must be within 0.01 and 64 in a MicroVM`},
		{"mounts:\n- {volume: data, path: /data, shared: true}", `f:5:39: mounts[0]: shared: a microVM has its own kernel, and one file system in two kernels is destroyed; only containers can share a volume`},
		{"mounts: ['data:/a', 'data:/b:ro']", `f:4:21: mounts[1]: volume "data" is mounted by mounts[0] already: it is a disk of the microVM, which is mounted once`},
		{"mounts:" + slots, fmt.Sprintf(`f:5:1: more than %d mounts: each is a disk of the microVM`, vmMountsMax)},
		{"resources: {memory: 16MiB, cpus: 64}\nnetwork: none", ""},
	} {
		container := base + c.add + "\n"
		vm := strings.Replace(container, "Container", "MicroVM", 1)
		text := ""
		if _, err := Decode("f", strings.NewReader(vm)); err != nil {
			text = err.Error()
		}
		if text != c.want {
			t.Errorf("%s: got %q, want %q", c.add, text, c.want)
		}
		if _, err := Decode("f", strings.NewReader(container)); err != nil && strings.Contains(err.Error(), "icro") {
			t.Errorf("%s: a container is refused as a microVM: %v", c.add, err)
		}
	}
}

func TestRefusedDocuments(t *testing.T) {
	for name, c := range map[string]struct{ source, want string }{
		"kind misspelt":  {"Kind: Container\nname: a\nimage: a\n", `f:1:1: unknown field "Kind"; did you mean "kind"?`},
		"kind unknown":   {"kind: container\nname: a\nimage: a\n", `f:1:7: unknown kind "container"; did you mean "Container"?`},
		"kind missing":   {"name: a\nimage: a\n", `f:1:1: kind is missing; want Container, MicroVM, Volume`},
		"name upper":     {"kind: Container\nname: Web\nimage: a\n", `f:2:7: name "Web" must be lower-case letters, digits and "-", with no "-" at its ends`},
		"name long":      {"kind: Container\nname: " + strings.Repeat("a", 41) + "\nimage: a\n", `f:2:7: name "` + strings.Repeat("a", 41) + `" is longer than 40 characters`},
		"name ours":      {"kind: Container\nname: system\nimage: a\n", `f:2:7: name "system" is the capsule's own`},
		"name number":    {"kind: Container\nname: 12\nimage: a\n", `f:2:7: name "12" must have a letter, or it reads as an address`},
		"image missing":  {"kind: Container\nname: a\n", `f:1:1: image is missing`},
		"image wrong":    {"kind: Container\nname: a\nimage: Web\n", `f:3:8: image "Web": invalid reference format: repository name (library/Web) must be lowercase`},
		"a list":         {"- kind: Container\n", `f:1:1: want fields such as "kind: Container", found a list`},
		"text":           {"hello\n", `f:1:1: want fields such as "kind: Container", found "hello"`},
		"twice":          {base + "---\n" + base, `f:6:7: Container "web" is already declared in line 2`},
		"both kinds":     {base + "---\nkind: MicroVM\nname: web\nimage: a\n", `f:6:7: the name "web" is already used by the Container in line 2; workloads of both kinds share their names`},
		"one bad of two": {base + "---\nkind: Container\nname: b\nimage: a\nusr: x\n", `f:8:1: unknown field "usr"; did you mean "user"?`},
		"not UTF-8":      {"kind: Container\nname: \xff\n", `f:2:7: not UTF-8 text`},
		"too large":      {strings.Repeat("#", MaxBytes+1), `f:1:1: manifest is larger than 1MiB`},
		"alias bomb":     {"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", `f:1:1: unknown field "a"`},
	} {
		t.Run(name, func(t *testing.T) {
			objs, err := Decode("f", strings.NewReader(c.source))
			if objs != nil || err == nil {
				t.Fatalf("got %v, %v", objs, err)
			}
			if got := strings.Split(err.Error(), "\n"); !strings.HasPrefix(got[0], c.want) || (name != "alias bomb" && len(got) != 1) {
				t.Errorf("got  %s\nwant %s", err, c.want)
			}
		})
	}
}

func TestErrorsAreOrderedAndBounded(t *testing.T) {
	var source strings.Builder
	source.WriteString(base)
	for i := range 100 {
		fmt.Fprintf(&source, "wrong%d: x\n", i)
	}
	_, err := Decode("f", strings.NewReader(source.String()))
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != maxErrors+1 || !strings.HasPrefix(lines[0], "f:4:1:") {
		t.Errorf("%d lines, first %s", len(lines), lines[0])
	}
}

func TestParseSize(t *testing.T) {
	for _, c := range []struct {
		text string
		want int64
	}{
		{"10GB", 10_000_000_000}, {"10GiB", 10 << 30}, {"10 GiB", 10 << 30}, {"1.5GiB", 3 << 29},
		{"1KB", 1000}, {"1KiB", 1024}, {"1MB", 1_000_000}, {"1MiB", 1 << 20}, {"1TB", 1e12}, {"1TiB", 1 << 40}, {"7B", 7},
		{"8388607TiB", 8388607 << 40},
	} {
		if got, err := ParseSize(c.text); err != nil || got != c.want {
			t.Errorf("%s: got %d, %v", c.text, got, err)
		}
	}
	for _, text := range []string{"", "10", "10G", "10g", "10gb", "1Github", "-1GiB", "0", "0GiB", "9999999999GiB", "1.5B", "0.1KiB", "1e3MB", "0x10MB", "1_0MB", " 1MB", "1  MB", "1,5GiB", "GiB", ".5GiB", "١GiB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q: got %d", text, got)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]int{"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN+3": 37, "RTMAX-1": 63, "SIGRTMIN": 34, "RTMIN": 34, "RTMAX": 64, "SIGUSR1": 10, "37": 37, "64": 64} {
		if got, err := ParseSignal(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "-1", "65", "SIG", "RTMIN+31", "RTMAX-31", "RTMIN+-1", "015", "SIGSIGTERM", "SIGFOO", "RTMIN-1", "RTMAX+1", "RTMIN+", "RTMIN+x", "RTMINx"} {
		if got, err := ParseSignal(text); err == nil {
			t.Errorf("%s: got %d", text, got)
		}
	}
}

func TestDiff(t *testing.T) {
	old, changed := wholeObject(), wholeObject()
	changed.GetWorkload().Spec.Image = "registry.lan:5000/web:2"
	changed.GetWorkload().Spec.Env["A"] = "no"
	changed.GetWorkload().Spec.Resources.Pids = 0
	changed.GetWorkload().Spec.RequiredForUpdate = false
	changed.GetWorkload().Spec.Health.Http.Port = 81
	changed.GetWorkload().Spec.DependsOn = []string{"db"}
	want := `-image: registry.lan:5000/web:1
+image: registry.lan:5000/web:2
 env:
-  A: "yes"
+  A: "no"
 resources:
-  pids: 100
-requiredForUpdate: true
 health:
   http:
-    port: 80
+    port: 81
 dependsOn:
-  - cache
`
	if diff := cmp.Diff(want, Diff(old, changed)); diff != "" {
		t.Error(diff)
	}
	if got := Diff(old, wholeObject()); got != "" {
		t.Errorf("equal objects differ: %s", got)
	}
	if got := Diff(nil, old); !strings.HasPrefix(got, "+kind: Container\n+name: web\n") {
		t.Errorf("new object: %s", got)
	}
}

func TestValidateOfAClient(t *testing.T) {
	for name, break_ := range map[string]func(*capsulev1.Object){
		"no meta":           func(o *capsulev1.Object) { o.Meta = nil },
		"no spec":           func(o *capsulev1.Object) { o.GetWorkload().Spec = nil },
		"no kind":           func(o *capsulev1.Object) { o.Kind = nil },
		"nil port":          func(o *capsulev1.Object) { o.GetWorkload().Spec.Ports[0] = nil },
		"memory -1":         func(o *capsulev1.Object) { o.GetWorkload().Spec.Resources.Memory = -1 },
		"cpus -1":           func(o *capsulev1.Object) { o.GetWorkload().Spec.Resources.Cpus = -1 },
		"negative grace":    func(o *capsulev1.Object) { o.GetWorkload().Spec.StopGrace.Seconds = -1 },
		"port too large":    func(o *capsulev1.Object) { o.GetWorkload().Spec.Ports[0].HostPort = 1 << 31 },
		"no check":          func(o *capsulev1.Object) { o.GetWorkload().Spec.Health.Http = nil },
		"negative interval": func(o *capsulev1.Object) { o.GetWorkload().Spec.Health.Interval.Seconds = -1 },
		"invalid timeout":   func(o *capsulev1.Object) { o.GetWorkload().Spec.Health.Timeout.Nanos = -1 },
		"check and none":    func(o *capsulev1.Object) { o.GetWorkload().Spec.Health.None = true },
		"newer field": func(o *capsulev1.Object) {
			o.GetWorkload().Spec.Resources.ProtoReflect().SetUnknown([]byte{0xa0, 0x06, 0x01})
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := wholeObject()
			Default(o)
			if err := Validate(o); err != nil {
				t.Fatal(err)
			}
			break_(o)
			if err := Validate(o); !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte(base + "---\n" + base))
	f.Add([]byte(base + "health: none\n---\n" + base + "health: {tcp: {port: 1}}\ndependsOn: [a, b]\n"))
	f.Add([]byte(base + "health: {exec: [/bin/sh, -c, 'a b'], retries: 9}\nrestart: never\n"))
	f.Add([]byte(volumeText + "---\n" + mounting))
	f.Add([]byte("kind: Container\nname: a\nimage: a\nenv: {\"\\x7f\": \"\\u2028\"}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		objs, err := Decode("f", strings.NewReader(string(data)))
		if err != nil {
			return
		}
		for _, o := range objs {
			text, err := Encode(o)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Decode("again", strings.NewReader(string(text)))
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			for _, both := range []*capsulev1.Object{o, again[0]} {
				Default(both)
			}
			if diff := cmp.Diff(o, again[0], protocmp.Transform()); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

func FuzzParseSize(f *testing.F) {
	f.Add("1.5 GiB")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			return
		}
		if again, err := ParseSize(FormatSize(n)); n <= 0 || err != nil || again != n {
			t.Fatalf("%q: %d, again %d, %v", s, n, again, err)
		}
	})
}
