package compose

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"capsule/api/manifest"
	"capsule/internal/process"
)

// update writes what comes out as what is wanted: CAPSULE_UPDATE=1 go test ./internal/compose
var update = os.Getenv("CAPSULE_UPDATE") != ""

// Each folder of testdata has a Compose file, the manifest that comes of it, and what is lost.
func TestConvertKnown(t *testing.T) {
	files, err := filepath.Glob("testdata/*/compose.yaml")
	if err != nil || len(files) < 7 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			r := convertFile(t, file)
			text, err := r.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := manifest.Decode("manifest.yaml", strings.NewReader(string(text))); err != nil {
				t.Error(err)
			}
			golden(t, filepath.Join(dir, "manifest.yaml"), string(text))
			golden(t, filepath.Join(dir, "losses.txt"), lossText(t, r, dir))
		})
	}
}

func convertFile(t *testing.T, file string) *Result {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Convert(t.Context(), Source{Name: "compose.yaml", Dir: dir, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// lossText has no path of this machine in it.
func lossText(t *testing.T, r *Result, dir string) string {
	t.Helper()
	abs, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, l := range r.Losses {
		fmt.Fprintf(&b, "%d: %s: %s\n", l.Line, l.Path, strings.ReplaceAll(l.Message, abs, "DIR"))
	}
	return b.String()
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// A file of which all is carried over loses nothing: exit code 0 means that.
func TestPlainLosesNothing(t *testing.T) {
	if r := convertFile(t, "testdata/plain/compose.yaml"); len(r.Losses) > 0 {
		t.Errorf("lost: %v", r.Losses)
	}
}

// What a line of a file comes to. The service is "web" with the image web:1.
func TestLosses(t *testing.T) {
	for _, test := range []struct{ name, lines, path, message string }{
		{"privileged", "privileged: true", "services.web.privileged", "rights of the capsule"},
		{"device", "devices: [/dev/dri]", "services.web.devices", "no device"},
		{"gpu of deploy", "deploy: {resources: {reservations: {devices: [{capabilities: [gpu]}]}}}", "services.web.deploy.resources.reservations.devices", "no device"},
		{"capability", "cap_add: [CHOWN, SYS_ADMIN]", "services.web.cap_add[1]", "SYS_ADMIN"},
		{"dropped", "cap_drop: [ALL]", "services.web.cap_drop", "root in a workload keeps"},
		{"host", "network_mode: host", "services.web.network_mode", "ports"},
		{"sidecar", "network_mode: service:web2", "services.web.network_mode", "service:web2"},
		{"extra host", "extra_hosts: [\"a:1.2.3.4\"]", "services.web.extra_hosts", "hosts file"},
		{"labels", "labels: {traefik.enable: \"true\"}", "services.web.labels", "nothing reads labels"},
		{"build", "build: .", "services.web.build", "image push"},
		{"socket", "volumes: [\"/var/run/docker.sock:/var/run/docker.sock\"]", "services.web.volumes[0]", "no Docker"},
		{"time", "volumes: [\"/etc/localtime:/etc/localtime:ro\"]", "services.web.volumes[0]", "TZ"},
		{"folder", "volumes: [\"/srv/x:/x\"]", "services.web.volumes[0]", `"p-x" is in its place`},
		{"missing file", "volumes: [\"./x.conf:/etc/x.conf\"]", "services.web.volumes[0]", "not here"},
		{"tmpfs", "tmpfs: /run/x", "services.web.tmpfs[0]", "in memory"},
		{"any port", "ports: [\"3000\"]", "services.web.ports[0]", "3000 is published on 3000"},
		{"one of ports", "ports: [\"3000-3005:80\"]", "services.web.ports[0]", "picks one"},
		{"own port", "ports: [\"50000:80\"]", "services.web.ports[0]", "capsule's own"},
		{"sctp", "ports: [\"80:80/sctp\"]", "services.web.ports[0]", "only tcp and udp"},
		{"times only", "healthcheck: {interval: 5s}", "services.web.healthcheck", "only times"},
		{"slow check", "healthcheck: {test: [CMD, x], interval: 2h}", "services.web.healthcheck.interval", "within"},
		{"tries", "restart: on-failure:3", "services.web.restart", "at most 3"},
		{"replicas", "deploy: {replicas: 3}", "services.web.deploy.replicas", "one runs"},
		{"little memory", "mem_limit: 1m", "services.web.mem_limit", "at least 6MiB"},
		{"grace", "stop_grace_period: 1h", "services.web.stop_grace_period", "5m0s"},
		{"pull", "pull_policy: always", "services.web.pull_policy", "not pulled again"},
		{"init", "init: true", "services.web.init", "process 1"},
		{"other name", "container_name: my_web", "services.web.container_name", `called "web"`},
		{"alias", "networks: {default: {aliases: [www]}}", "services.web.networks.default.aliases", `"www"`},
		{"address", "networks: {default: {ipv4_address: 10.0.0.2}}", "services.web.networks.default.ipv4_address", "stays"},
		{"unset", "environment: {A: \"${NOWHERE}\"}", "services.web.environment.A", `"NOWHERE" is not set`},
		{"passed on", "environment: [NOWHERE]", "services.web.environment.NOWHERE", "no value"},
		{"empty command", "command: []", "services.web.command", "image's arguments"},
		{"unheard of", "userns_mode: host", "services.web.userns_mode", "no equivalent"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := convert(t, "services:\n  web:\n    image: web:1\n    "+test.lines+"\n  web2: {image: web:1}\n")
			for _, l := range r.Losses {
				if l.Path == test.path && strings.Contains(l.Message, test.message) {
					if l.Line != 4 {
						t.Errorf("line %d, want 4", l.Line)
					}
					return
				}
			}
			t.Errorf("no loss %s: …%s…; there are %v", test.path, test.message, r.Losses)
		})
	}
}

func convert(t *testing.T, text string) *Result {
	t.Helper()
	r, err := Convert(t.Context(), Source{Name: "compose.yaml", Dir: t.TempDir(), Data: []byte(text), Project: "p"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Names that can't be ours are changed everywhere but in what programs are given, and
// that is said.
func TestRenamed(t *testing.T) {
	r := convert(t, `services:
  my_app:
    image: app:1
    environment: {DB: "postgres://my_db:5432/x", OTHER: not_my_db_name}
    depends_on: [my_db]
    volumes: ["my_data:/d"]
  my_db: {image: db:1}
volumes: {my_data: {}}
`)
	text, err := r.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"name: my-app\n", "name: my-db\n", "dependsOn:\n  - my-db\n", "name: p-my-data\n", "p-my-data:/d", "postgres://my_db:5432/x"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	told := lossText(t, r, ".")
	if !strings.Contains(told, `services.my_app.environment.DB: names "my_db", which is called "my-db" here`) || strings.Contains(told, "environment.OTHER") {
		t.Errorf("told:\n%s", told)
	}
}

func TestSlug(t *testing.T) {
	for text, want := range map[string]string{
		"web": "web", "My_App": "my-app", "__": "unnamed", "8080": "n8080", "localhost": "localhost-app",
		strings.Repeat("a", 50): strings.Repeat("a", 40), "a.b": "a-b",
	} {
		if got := slug(text); got != want {
			t.Errorf("slug(%q) = %q, want %q", text, got, want)
		}
	}
}

// A prefix keeps the workloads of two projects apart.
func TestPrefix(t *testing.T) {
	r, err := Convert(t.Context(), Source{Name: "c", Dir: t.TempDir(), Prefix: "x-", Data: []byte("services: {db: {image: a}, app: {image: a, environment: {HOST: db}}}")})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Objects[1].GetMeta().GetName(); got != "x-db" {
		t.Errorf("called %q", got)
	}
	if len(r.Losses) != 1 || r.Losses[0].Path != "services.app.environment.HOST" { // the name itself was asked for
		t.Errorf("losses: %v", r.Losses)
	}
}

// Profiles that are not asked for are told, and left out.
func TestProfiles(t *testing.T) {
	src := Source{Name: "c", Dir: t.TempDir(), Data: []byte("services:\n  a: {image: a}\n  b: {image: b, profiles: [more]}\n")}
	r, err := Convert(t.Context(), src)
	if err != nil || len(r.Objects) != 1 || len(r.Losses) != 1 || !strings.Contains(r.Losses[0].Message, "--profile more") {
		t.Fatalf("%+v %v", r, err)
	}
	src.Profiles = []string{"more"}
	if r, err = Convert(t.Context(), src); err != nil || len(r.Objects) != 2 || len(r.Losses) != 0 {
		t.Fatalf("%+v %v", r, err)
	}
}

func TestSecretsOfAllSources(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "raw"), []byte{0xff, 0}, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Convert(t.Context(), Source{Name: "c", Dir: dir, Project: "p", Env: map[string]string{"PASS": "word"}, Data: []byte(`services:
  a: {image: a, secrets: [of_env, of_file, {source: gone, target: /etc/gone, mode: "0400", uid: "5", gid: "6"}]}
secrets: {of_env: {environment: PASS}, of_file: {file: ./raw}, gone: {external: true}}
`)})
	if err != nil {
		t.Fatal(err)
	}
	text, err := r.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"name: p-of-env\ndata:\n  value: word\n", "name: p-of-file\nbinaryData:\n  value: \"/wA=\"\n", "path: /run/secrets/of_env\n", "secret: p-gone/value\n    mode: \"0400\"\n    owner: \"5:6\"\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if len(r.Losses) != 1 || r.Losses[0].Path != "secrets.gone" {
		t.Errorf("losses: %v", r.Losses)
	}
}

// Files come from the folder of the Compose file only, and no larger than a manifest takes.
func TestBindFiles(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret.txt")
	dir := t.TempDir()
	for file, size := range map[string]int{outside: 3, filepath.Join(dir, "fits.txt"): fileMax, filepath.Join(dir, "large.txt"): fileMax + 1} {
		if err := os.WriteFile(file, []byte(strings.Repeat("x", size)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Convert(t.Context(), Source{Name: "c", Dir: dir, Data: []byte(`services:
  a:
    image: a
    volumes: ["./fits.txt:/a:ro", "./large.txt:/b:ro", "` + filepath.ToSlash(outside) + `:/c:ro"]
`)})
	if err != nil {
		t.Fatal(err)
	}
	if files := r.Objects[0].GetWorkload().GetSpec().GetFiles(); len(files) != 1 || files[0].GetPath() != "/a" {
		t.Errorf("files: %v", files)
	}
	told := lossText(t, r, dir)
	if !strings.Contains(told, "large.txt\" can't be taken along") || !strings.Contains(told, "is not in the folder of the Compose file") {
		t.Errorf("told:\n%s", told)
	}
}

func TestRefused(t *testing.T) {
	for name, text := range map[string]string{
		"no YAML":       "services: [",
		"no Compose":    "kind: Container\nname: web\n",
		"unknown field": "services: {web: {image: a, imagee: b}}",
		"no service":    "volumes: {a: {}}",
		"no image":      "services: {web: {restart: always}}",
		"bad image":     "services: {web: {image: 'A B'}}",
		"required":      "services: {web: {image: 'a:${TAG:?}'}}",
		"merged circle": "x-a: &x {<<: [*x, *x, *x]}\nservices: {web: {image: a}}",
		"circle of all": ": &x {<<: [*x, *x]}",
		"circle of one": "services: {web: {image: a}}\n---\nx-a: &x {<<: *x}",
		"circle":        "x-a: &x [*x, *x, *x]\nservices: {web: {image: a}}",
		"too large":     strings.Repeat("#", MaxBytes+1),
		"many ports":    "services: {web: {image: a, ports: ['1-65535:1-65535', '1-65535:1-65535/udp']}}",
	} {
		if r, err := Convert(t.Context(), Source{Name: "compose.yaml", Dir: t.TempDir(), Data: []byte(text)}); err == nil {
			t.Errorf("%s: taken: %v", name, r.Objects)
		} else if strings.Contains(err.Error(), "failed to") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The list of capabilities that is told is the one that is given.
func TestOwnCapabilities(t *testing.T) {
	var given []string
	for _, name := range process.Capabilities {
		given = append(given, strings.TrimPrefix(name, "CAP_"))
	}
	if diff := cmp.Diff(given, ownCapabilities); diff != "" {
		t.Error(diff)
	}
}

// Whatever a file holds, it is refused, or what comes out can be applied.
func FuzzConvert(f *testing.F) {
	files, err := filepath.Glob("testdata/*/compose.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("x-a: &x {<<: [*x, *x]}\nservices: {web: {image: a}}"))
	f.Add([]byte(": &x {<<: [*x, *x]}"))
	f.Add([]byte("services: {a: {image: a, volumes: [x], ports: [{target: 80, published: 1-2}], configs: [c]}}\nconfigs: {c: {content: x}}\nvolumes: {x: {external: true}}"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Convert(context.Background(), Source{Name: "compose.yaml", Dir: dir, Data: data})
		if err != nil {
			return
		}
		text, err := r.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := manifest.Decode("out", strings.NewReader(string(text))); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
	})
}
